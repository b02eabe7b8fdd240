"""Engines as objects, where a name or an address does not say enough: `engine=fourfold.engines.Spark(session=mine)`."""

from fourfold.distribute.engines.on_dask import Dask
from fourfold.distribute.engines.on_ray import Ray
from fourfold.distribute.engines.on_spark.engine import Spark

__all__ = ["Dask", "Ray", "Spark"]
