"""The address by which the workers of a cluster reach this machine: the one that this machine has on the way to them."""

import contextlib
import socket
import sys
from typing import Any
from urllib.parse import urlsplit

from fourfold.options import cluster_of

LOOPBACK = "127.0.0.1"
"""Of a cluster on this machine."""


def own_address(engine: Any) -> str | None:
    """Where a desk listens for the workers of an engine; None when they are processes of this machine.

    Called when the engine is connected.

    Args:
        engine: The option: a name, an address, or an Engine object.
    """
    if isinstance(engine, str):
        cluster, connection = cluster_of(engine), None
        host = urlsplit(engine).hostname if "://" in engine else None
    else:
        cluster, connection, host = engine.info.name, getattr(engine, "connection", None), None
        if not engine.info.elsewhere:
            return None
    if cluster not in _OF_CLUSTERS:
        return None if connection is None else LOOPBACK
    return (_towards(host) if host else None) or _OF_CLUSTERS[cluster](connection) or LOOPBACK


def _of_spark(connection: Any) -> str | None:
    """What the driver tells its executors; of a session of Connect, whose driver is elsewhere, the way to its server."""
    sessions = getattr(sys.modules.get("pyspark.sql"), "SparkSession", None)
    session = getattr(connection, "spark", None) or (sessions.getActiveSession() if sessions is not None else None)
    context = getattr(session, "_sc", None)
    if context is not None:
        return str(context.getConf().get("spark.driver.host") or "") or None
    with contextlib.suppress(AttributeError):
        return _towards(str(session.client.host))  # type: ignore[union-attr]
    return None


def _of_ray(connection: Any) -> str | None:
    ray = sys.modules.get("ray")
    return str(ray.util.get_node_ip_address()) if ray is not None and ray.is_initialized() else None


def _of_dask(connection: Any) -> str | None:
    client = getattr(connection, "client", None)
    if client is None and "distributed" in sys.modules:
        with contextlib.suppress(ValueError):  # there is none
            client = sys.modules["distributed"].get_client()
    address = str(getattr(getattr(client, "scheduler", None), "address", ""))
    return _towards(urlsplit(address).hostname or "") if "://" in address else None


_OF_CLUSTERS = {"spark": _of_spark, "ray": _of_ray, "dask": _of_dask}


def _towards(host: str) -> str | None:
    """The address of this machine on the way to another one. Nothing is sent."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))
        return str(probe.getsockname()[0])
    return None
