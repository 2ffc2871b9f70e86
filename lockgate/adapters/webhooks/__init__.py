"""Webhooks: the HTTP endpoints, the deliveries that they keep on disk, and their way to Prefect."""

from lockgate.adapters.webhooks.app import Reception, create_app
from lockgate.adapters.webhooks.handover import Handover
from lockgate.adapters.webhooks.limits import Limits
from lockgate.adapters.webhooks.outbox import Outbox
from lockgate.adapters.webhooks.prefect_api import PrefectApi

__all__ = ["Handover", "Limits", "Outbox", "PrefectApi", "Reception", "create_app"]
