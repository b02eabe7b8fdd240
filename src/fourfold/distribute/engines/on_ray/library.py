"""The library Ray, imported when it is first needed, and what it knows of this process."""

import contextlib
import os
from typing import Any


def ray() -> Any:
    """The library."""
    import ray

    return ray


def which_ray() -> Any:
    """What tells the Ray of this process from any other one; None where that is not known, as over ray://."""
    with contextlib.suppress(Exception):
        context = ray().get_runtime_context()
        return context.get_job_id(), context.get_node_id()
    return None


def asks_who_it_is() -> bool:
    """Whether the Ray of this process uses tokens, or certificates on both sides."""
    if os.environ.get("RAY_USE_TLS", "").lower() in ("1", "true"):
        return True
    with contextlib.suppress(AttributeError):  # an older Ray has no tokens
        return bool(ray()._raylet.get_authentication_mode() == ray()._raylet.AuthenticationMode.TOKEN)
    return False
