"""What the caller has set for jobs holds for jobs from our threads, too: job group, scheduler pool, description, tags.

So who cancels a group, or ends a job on Spark's own pages, ends the call; and a Spark that people share by pools stays fair.
"""

import contextlib
from collections.abc import Callable
from typing import Any

CALLED_OFF = ("SPARK_JOB_CANCELLED", "OPERATION_CANCELED")
"""How Spark names the end of a job that somebody has cancelled, Classic and Connect."""


def is_called_off(error: BaseException) -> bool:
    """Whether a job has ended because somebody wanted it to."""
    return any(each in str(error) for each in CALLED_OFF)


def is_remote(spark: Any) -> bool:
    """Whether a session is one of Spark Connect."""
    return type(spark).__module__.startswith("pyspark.sql.connect")


def settings_of_this_thread(spark: Any) -> Callable[[], None]:
    """What sets them on the thread where it is called, as they are on this one now."""
    with contextlib.suppress(Exception):  # this Spark has ended: its jobs tell that
        return _with_tags(spark) if is_remote(spark) else _with_properties(spark)
    return _nothing


def _with_tags(spark: Any) -> Callable[[], None]:
    tags = sorted(spark.getTags())

    def set_there() -> None:
        with contextlib.suppress(Exception):
            for tag in tags:
                spark.addTag(tag)

    return set_there


def _with_properties(spark: Any) -> Callable[[], None]:
    if (
        type(spark.sparkContext._gateway).__name__ != "ClientServer"
    ):  # PYSPARK_PIN_THREAD=false: threads have none of their own
        return _nothing
    context = spark.sparkContext._jsc.sc()
    properties = context.getLocalProperties().clone()

    def set_there() -> None:
        with contextlib.suppress(Exception):
            context.setLocalProperties(properties.clone())  # each thread has its own: a job adds its tag to them

    return set_there


def _nothing() -> None:
    """Nothing was set."""
