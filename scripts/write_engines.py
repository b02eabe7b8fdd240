"""Write the table of docs/engines.md: what each engine promises, from its `info`.

python scripts/write_engines.py [--check]
"""

import sys
from pathlib import Path

from fourfold.distribute.engine import EngineInfo
from fourfold.distribute.engines.on_dask import Dask
from fourfold.distribute.engines.on_processes.engine import Processes
from fourfold.distribute.engines.on_ray import Ray
from fourfold.distribute.engines.on_spark.engine import Spark
from fourfold.distribute.engines.on_this_thread import ThisThread
from fourfold.distribute.engines.on_threads import Threads
from fourfold.lanes import KEPT_BY_THE_DRIVER
from fourfold.options import NAMES

PAGE = Path(__file__).parents[1] / "docs" / "engines.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"

ENGINES = (ThisThread, Threads, Processes, Spark, Ray, Dask)
INFOS = [engine.info for engine in ENGINES]
KILLS = {"ticket": "its chunk", "bundle": "its Spark job", "no": "no"}


def table() -> str:
    """The table as Markdown."""
    options = [name for name in NAMES if name not in KEPT_BY_THE_DRIVER]
    rows = [("", *(f"`{info.name}`" for info in INFOS))]
    rows += [(f"`{name}=`", *(_yes(name in info.honours) for info in INFOS)) for name in options]
    rows += [
        ("workers may be on other machines", *(_yes(info.elsewhere) for info in INFOS)),
        ("what is stopped ends after the item that it is on", *(_yes(info.stops_items) for info in INFOS)),
        ("an item that never ends is killed, with", *(KILLS[info.kills] for info in INFOS)),
        ("runs chunks again by itself after a machine is lost", *(_yes(info.engine_reruns) for info in INFOS)),
        ("starts gangs: `ff.launch`", *(_yes(engine is Processes or hasattr(engine, "run_gang")) for engine in ENGINES)),
        ("a chunk starts after", *(_milliseconds(info) for info in INFOS)),
    ]
    header, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([header, "|" + " --- |" * (len(INFOS) + 1), *body]) + "\n"


def _yes(is_so: bool) -> str:
    return "yes" if is_so else "–"


def _milliseconds(info: EngineInfo) -> str:
    return f"{1000 * info.dispatch_s:g} ms" if info.dispatch_s else "at once"


def main() -> int:
    """Write the table, or say whether it is as it should be."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    new = f"{before}{BEGIN}{table()}{END}{after}"
    if "--check" in sys.argv:
        return int(new != text)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
