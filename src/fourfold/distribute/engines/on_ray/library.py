"""The library Ray, imported when it is first needed, and what it knows of this process."""

import contextlib
import os
from typing import Any

from fourfold.distribute.connection import check_that_somebody_listens
from fourfold.errors import EngineError


def ray() -> Any:
    """The library."""
    import ray

    return ray


def check_that_ray_listens(address: str) -> None:
    """Ray would try an address for a minute at which nobody is, and then end this process.

    Raises:
        EngineError: Nobody listens there. Of "auto" it is told in which file the address was, which a Ray leaves that dies.
    """
    if address != "auto":
        check_that_somebody_listens(address)
        return
    found, noted = _found_by_itself()
    try:
        check_that_somebody_listens(found)
    except EngineError as error:
        if not noted:
            raise
        raise EngineError(
            f"{error} That is the address in {noted}, where a Ray leaves it that is killed. Start one (`ray start --head`), "
            "give its address, or leave the address out to start one here"
        ) from error


def _found_by_itself() -> tuple[str, str]:
    """What Ray takes "auto" for, and the file that says so, "" for none; "" for both where that is not known."""
    with contextlib.suppress(Exception):  # a Ray that finds it in another way, or finds none and says so
        from ray._private import services, utils

        found = str(services.get_ray_address_from_environment("auto", None))
        if found != utils.read_ray_address():
            return found, ""
        return found, str(getattr(utils, "get_ray_address_file")(None))  # noqa: B009 (it is imported there)
    return "", ""


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
