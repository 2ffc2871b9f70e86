"""How one flow runs another: in this process, or as a deployment with resources and an identity of its own."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from prefect import Flow
from prefect.deployments import run_deployment

from lockgate.domain.base import Frozen
from lockgate.errors import LockgateError
from lockgate.settings import Settings
from tasks.recorded import received

Result = TypeVar("Result", bound=Frozen)

STEP_SECONDS = 12 * 3600.0


def run_step(step: Flow[Any, Result], request: Frozen, result_type: type[Result]) -> Result:
    """Run a step flow by the way that the settings say and return its result.

    Raises:
        LockgateError: the deployment's run did not complete (in this process the step's own error is raised).
    """
    if Settings().step_runner == "inline":
        return step(request)
    run = cast(
        Any,
        run_deployment(
            f"{step.name}/{step.name}",
            parameters={"request": request.to_data()},
            timeout=STEP_SECONDS,
            as_subflow=True,
        ),
    )
    if run.state is None or not run.state.is_completed():
        error = LockgateError(
            f"step {step.name} ended {run.state.name if run.state else 'without a state'}",
            log=f"of flow run {run.id} in Prefect (`prefect flow-run logs {run.id}`)",
            hint="a second release goes on from here",
        )
        error.step = step.name
        raise error
    return received(step.name, request, result_type)
