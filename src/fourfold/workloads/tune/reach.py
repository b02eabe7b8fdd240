"""The address by which the workers of a cluster reach this machine."""

import contextlib
import socket
import sys
from typing import Any
from urllib.parse import urlsplit

from fourfold.options import cluster_of

LOOPBACK = "127.0.0.1"


def own_address(engine: Any) -> str | None:
    """Where a desk listens for the workers of an engine; None when they are processes of this machine.

    Args:
        engine: The option: a name, an address, or an Engine object.
    """
    if not isinstance(engine, str):
        info = engine.info
        return _by_cluster(info.name, "") if info.elsewhere else None
    cluster = cluster_of(engine)
    return _by_cluster(cluster, engine) if cluster in _OF_CLUSTERS else None


def _by_cluster(cluster: str, address: str) -> str:
    host = urlsplit(address).hostname if "://" in address else None
    found = _OF_CLUSTERS.get(cluster, lambda: None)() or (_towards(host) if host else None)
    return found or LOOPBACK


def _of_spark() -> str | None:
    session = getattr(sys.modules.get("pyspark.sql"), "SparkSession", None)
    active = session.getActiveSession() if session is not None else None
    context = getattr(active, "_sc", None)  # a session of Connect has none: its driver is elsewhere
    return context.getConf().get("spark.driver.host") if context is not None else None


def _of_ray() -> str | None:
    ray = sys.modules.get("ray")
    return str(ray.util.get_node_ip_address()) if ray is not None and ray.is_initialized() else None


def _of_dask() -> str | None:
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    with contextlib.suppress(ValueError):  # there is no client
        return _towards(urlsplit(distributed.get_client().scheduler.address).hostname or "")
    return None


_OF_CLUSTERS = {"spark": _of_spark, "ray": _of_ray, "dask": _of_dask}


def _towards(host: str) -> str | None:
    """The address of this machine on the way to another one. Nothing is sent."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))
        return str(probe.getsockname()[0])
    return None
