"""What a run of a plan is made of: a recorded run tells which of it has changed, each by a name that a person knows."""

from typing import Any

from fourfold.data.plan import Plan
from fourfold.data.work import Gather, Policy
from fourfold.runs.fingerprint import MODEL


def parts_of_run(plan: Plan, gather: Gather, policy: Policy) -> dict[str, Any]:
    """All that the rows depend on, by name, besides the pieces: those are the items of the run."""
    parts: dict[str, Any] = {"the input": plan._replace(steps=())}
    for number, step in enumerate(plan.steps, 1):
        parts[f"step {number} ({step.title})"] = type(step), {key: part for key, part in vars(step).items() if key != "model"}
        if step.model is not None:
            where = "in " if step.model.digest else ""  # only of a file there is one
            parts[f"{MODEL}{where}{step.title} (step {number})"] = step.model
    return parts | {"the output": gather, "on_error=, retries= or retry_on=": policy}
