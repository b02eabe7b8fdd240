"""Ending orders that run: Dask itself cannot, so its workers are told to, and the site ends them."""

import contextlib
import threading
from typing import Any

STOP_S = 2.0
"""Seconds until workers that do not answer are not waited for, when orders are to end. Shorter: an order that was to end may
begin. Longer: a machine that is stuck keeps the driver."""


def stop(client: Any, names: list[str], *, hard: bool) -> None:
    """Tell the workers to end these orders: between items, or with the process that runs them when `hard`."""
    teller = threading.Thread(
        target=_tell, args=(client, names, "hard" if hard else "soft"), name="fourfold-stop", daemon=True
    )
    teller.start()
    teller.join(STOP_S)  # a worker that does not answer may never do so


def _tell(client: Any, names: list[str], how: str) -> None:
    with contextlib.suppress(Exception):  # the next outcome tells what has become of the cluster
        client.run(_stop, names, how)


async def _stop(names: list[str], how: str) -> None:
    """On a worker: end these orders, and come back when those that run know it."""
    import asyncio
    from importlib import import_module

    site = import_module("fourfold.site")
    for name in names:
        site.stop(name, how)
    while not site.know(names):
        await asyncio.sleep(0.01)
