"""What becomes of a trial, and what a study says of it besides what Optuna has words for."""

COMPLETE, PRUNED, FAILED, CRASHED = "complete", "pruned", "failed", "crashed"
OUT_OF_MEMORY, TIMED_OUT, INVALID, UNFINISHED = "out of memory", "timed out", "invalid", "unfinished"

STATE = "fourfold:state"
"""System attribute of a trial: one of the words above."""
ERROR = "fourfold:error"
"""System attribute of a trial without a value: why."""
ATTEMPTS = "fourfold:attempts"
"""System attribute of a trial: how often it was begun."""
DRIVER = "fourfold:driver"
"""System attribute of a trial in a study that other processes see: the one that has, or had it."""
WAY = "fourfold:mode"
"""User attribute of a study, since others cannot be looked at: how its trials were proposed."""

OF_KIND = {
    "raised": FAILED,
    "unpicklable": FAILED,
    "crashed": CRASHED,
    "indeterminate": CRASHED,
    "out of memory": OUT_OF_MEMORY,
    "timed out": TIMED_OUT,
}
"""The state of a trial, by the kind of a failure."""
