"""fourfold: run the same function on one core, all cores, or a cluster, in the four steps of parallel processing.

    1 divide      items -> chunks            divide/       how big? measured, not guessed
    2 distribute  chunks -> workers          distribute/   an engine: this thread, threads, processes, Spark, Ray, Dask
    3 execute     chunk -> outcomes          execute/      inside a worker: one outcome per item, whatever happens
    4 aggregate   outcomes -> the answer     aggregate/    in order, as completed, reduced

    errors, records, options, machine        the ground that all of them stand on
    call (lanes, recorded), worker (site)    join the four steps, in the driver and in a worker process
    compose, engines                         the functions that users call, and engines as objects
    patterns                                 processes that talk to each other: launch, gang
    data, workloads                          tables bigger than memory, and what is done with them: scan, Dataset
    cli/                                     the command line, one file per command
    testing                                  contract suites and a simulated engine, for engines of your own

Importing fourfold imports the standard library only; NumPy, cloudpickle and the rest come when they are needed.
"""

import os
from typing import TYPE_CHECKING, Any

from fourfold.version import VERSION as __version__

_WHERE = {
    "ASHA": "workloads.tune.asha",
    "Dataset": "workloads.dataset",
    "Failure": "records",
    "FourfoldError": "errors",
    "GroupModels": "workloads.groups.models",
    "Hyperband": "workloads.tune.asha",
    "LogisticRegression": "workloads.fit.logistic.estimator",
    "Options": "options",
    "Report": "records",
    "Results": "aggregate.results",
    "SearchCV": "workloads.tune.search.estimator",
    "Stream": "aggregate.results",
    "engines": "",
    "errors": "",
    "gang": "patterns",
    "imap": "compose",
    "launch": "patterns.gang",
    "map": "compose",
    "optimize": "workloads.tune.optimizing",
    "recipe": "workloads.fit.registry",
    "reduce": "compose",
    "rng": "execute.current",
    "scan": "workloads.scan",
    "using": "options",
}

__all__ = [
    "ASHA",
    "Dataset",
    "Failure",
    "FourfoldError",
    "GroupModels",
    "Hyperband",
    "LogisticRegression",
    "Options",
    "Report",
    "Results",
    "SearchCV",
    "Stream",
    "__version__",
    "engines",
    "errors",
    "gang",
    "imap",
    "launch",
    "map",
    "optimize",
    "recipe",
    "reduce",
    "rng",
    "scan",
    "using",
]

if TYPE_CHECKING:
    import fourfold.engines as engines
    import fourfold.errors as errors
    from fourfold.aggregate.results import Results, Stream
    from fourfold.compose import imap, map, reduce
    from fourfold.errors import FourfoldError
    from fourfold.execute.current import rng
    from fourfold.options import Options, using
    from fourfold.patterns import gang
    from fourfold.patterns.gang import launch
    from fourfold.records import Failure, Report
    from fourfold.workloads.dataset import Dataset
    from fourfold.workloads.fit.logistic.estimator import LogisticRegression
    from fourfold.workloads.fit.registry import recipe
    from fourfold.workloads.groups.models import GroupModels
    from fourfold.workloads.scan import scan
    from fourfold.workloads.tune.asha import ASHA, Hyperband
    from fourfold.workloads.tune.optimizing import optimize
    from fourfold.workloads.tune.search.estimator import SearchCV


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    import importlib

    if name not in _WHERE:
        raise AttributeError(f"module 'fourfold' has no attribute {name!r}")
    where = _WHERE[name]
    module = importlib.import_module(f"fourfold.{where or name}")
    value = getattr(module, name) if where else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


if os.environ.get("FOURFOLD_ROLE") != "worker":
    # The loop's own code, some milliseconds of standard library: the first call must not be slower than the loop.
    from fourfold.compose import imap, map, reduce
