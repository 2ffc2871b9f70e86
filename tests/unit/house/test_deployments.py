"""`prefect.yaml` deploys every flow, by module paths that exist, with parameters that they take."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from datetime import datetime
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from cronsim import CronSim
from prefect import Flow
from pydantic import TypeAdapter

import flows

ROOT = Path(__file__).resolve().parents[3]
DEPLOYED: list[dict[str, Any]] = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
BY_NAME = {deployed["name"]: deployed for deployed in DEPLOYED}
UNTRUSTED = {"untrusted": {"prepare", "scan-served"}, "gpu": {"quantize", "measure"}}


def every_flow() -> dict[str, Flow[Any, Any]]:
    found = {}
    for module in pkgutil.iter_modules(flows.__path__):
        for value in vars(importlib.import_module(f"flows.{module.name}")).values():
            if isinstance(value, Flow):
                found[value.name] = value
    return found


def test_every_flow_has_one_deployment_named_as_it_is() -> None:
    assert len(BY_NAME) == len(DEPLOYED)
    assert BY_NAME.keys() == every_flow().keys()


@pytest.mark.parametrize("name", BY_NAME)
def test_a_deployments_module_path_leads_to_its_flow_which_takes_its_parameters(name: str) -> None:
    module, _, attribute = BY_NAME[name]["entrypoint"].rpartition(".")
    flow = getattr(importlib.import_module(module), attribute)
    assert flow.name == name
    given = BY_NAME[name].get("parameters", {})
    assert given.keys() <= inspect.signature(flow.fn).parameters.keys()
    if BY_NAME[name].get("schedules"):
        needed = {
            key
            for key, parameter in inspect.signature(flow.fn).parameters.items()
            if parameter.default is inspect.Parameter.empty
        }
        # Nobody is there to give a scheduled run what it lacks.
        assert needed <= given.keys()


@pytest.mark.parametrize("name", BY_NAME)
def test_parameters_are_written_in_the_form_that_prefect_checks_them_for(name: str) -> None:
    """The server refuses a run whose parameters do not fit the schema of what the flow reads."""
    types = get_type_hints(every_flow()[name].fn)
    for parameter in inspect.signature(every_flow()[name].fn).parameters:
        read, written = (
            TypeAdapter(types[parameter]).json_schema(mode=mode)
            for mode in ("validation", "serialization")
        )
        kinds, written_kinds = (
            {name: schema.get("type") for name, schema in {**one.get("$defs", {}), "": one}.items()}
            for one in (read, written)
        )
        assert written_kinds.items() <= kinds.items()


def test_what_touches_untrusted_bytes_or_signs_runs_in_a_queue_of_its_own() -> None:
    queues = {name: d["work_pool"].get("work_queue_name") for name, d in BY_NAME.items()}
    for own, names in UNTRUSTED.items():
        assert {name for name, queue in queues.items() if queue == own} == names
    assert {name for name, queue in queues.items() if queue == "signing"} == {"sign"}


def test_the_nightly_look_and_the_weekly_rescan_are_on_and_do_not_run_twice_at_once() -> None:
    hours = {"track": 24, "rescan": 7 * 24}
    for name, every in hours.items():
        (schedule,) = BY_NAME[name]["schedules"]
        times = CronSim(schedule["cron"], datetime(2026, 11, 1))
        first, second = next(times), next(times)
        assert (second - first).total_seconds() == every * 3600
        assert schedule["active"] is True
        assert BY_NAME[name]["concurrency_limit"]["limit"] == 1
