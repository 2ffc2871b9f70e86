"""Webhooks: who sent a delivery, and which tracked models it hints at. Nothing that a payload says is ever acted upon."""

from lockgate.domain.webhooks.authenticity import Sender, is_authentic, needs_body
from lockgate.domain.webhooks.matching import Delivery, deliveries
from lockgate.domain.webhooks.payloads import Hint, read_hints

__all__ = [
    "Delivery", "Hint", "Sender", "deliveries", "is_authentic", "needs_body", "read_hints",
]  # fmt: skip
