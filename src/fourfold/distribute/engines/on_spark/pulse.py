"""Whether the cluster of a session is there still. Spark itself waits for one that is gone: for minutes, or for ever.

    session ── Classic ──> its executors, and the master of a standalone cluster
            └─ Connect ──> its server

It is looked at from outside, while jobs run: no answer of Spark tells that nobody is left to run them.
"""

import contextlib
import os
import time
from typing import Any

from fourfold.distribute.connection import PROBE_S, check_that_somebody_listens
from fourfold.errors import EngineError

LOOK_S = 2.0
"""Seconds between looks. Not measured: one takes some milliseconds, when somebody listens."""

SILENT_S = 20.0
"""Seconds in which nobody listens until the cluster counts as gone. Shorter: a master or server that starts again is not
waited for. Longer: it is told later that nothing runs any more."""

EXECUTORS_ASKED = 4
"""Executors of a cluster without master that are asked whether they listen: one is enough, and each of a cluster that has lost
its network takes 5 s. Not measured."""

PROXIES = frozenset({"grpc_proxy", "https_proxy", "http_proxy"})
"""Variables of the environment, in small letters, with which Connect reaches what this machine may not."""


def has_proxy() -> bool:
    """Whether Connect may go another way than from here to the server."""
    return any(name.lower() in PROXIES for name in os.environ)


class Executors:
    """Those that a Classic session believes in. `scala` is its context.

    What it knows of its tasks says so: the scheduler, once its master is gone, does not answer any more.
    """

    def __init__(self, scala: Any) -> None:
        self._known = scala.statusStore()

    def count(self) -> int:
        """How many there are."""
        return int(self._known.executorList(True).size()) - 1  # the driver is one of them

    def places(self, most: int) -> list[str]:
        """Where some of them listen, as "host:port"."""
        known = self._known.executorList(True)
        each = [known.apply(i) for i in range(min(known.size(), most + 1))]
        return [str(one.hostPort()) for one in each if one.id() != "driver"][:most]


class Pulse:
    """Looks whether a cluster is there.

    Args:
        address: Of the master or server, as `check_that_somebody_listens` takes it; "": nobody can be looked for.
        executors: None on Connect, which does not say.
    """

    def __init__(self, address: str, executors: Executors | None) -> None:
        self.executors = executors
        self._address = ""
        if address:
            with contextlib.suppress(EngineError):  # nobody may ever listen there: Connect has ways of its own
                check_that_somebody_listens(address)
                self._address = address
        self.beat()

    def beat(self) -> None:
        """Nothing runs, or something has ended: nobody was missed until now."""
        self._heard_at = self._staffed_at = time.monotonic()

    def look(self) -> str:
        """Why the cluster counts as gone; "" while it is there, or may come back."""
        silence = self.silence()
        now = time.monotonic()
        if not silence:
            self._heard_at = now
        elif now - self._heard_at >= SILENT_S:
            return silence
        if self.executors is None or self.executors.count():
            self._staffed_at = now
        elif now - self._staffed_at >= PROBE_S:
            return f"it has had no executor for {PROBE_S:.0f} s"
        return ""

    def silence(self) -> str:
        """Why nobody seems to be there now; "" when somebody is."""
        if not self._address:
            return ""
        try:
            check_that_somebody_listens(self._address)
            return ""
        except EngineError as error:
            why = str(error)
        for place in self.executors.places(EXECUTORS_ASKED) if self.executors is not None else ():
            with contextlib.suppress(EngineError):  # they go on without their master
                check_that_somebody_listens(place)
                return ""
        return why


def pulse_of(spark: Any, is_remote: bool) -> Pulse | None:
    """The pulse of a session; None: all of it is in the Java process of this one, whose end everybody hears."""
    if is_remote:
        endpoint = ""
        with contextlib.suppress(AttributeError):  # the builder of a channel may be anybody's
            endpoint = str(spark.client._builder.endpoint)
        return Pulse("" if has_proxy() or not endpoint else f"sc://{endpoint}", None)
    context = spark.sparkContext
    master = str(context.master)
    if master == "local" or master.startswith("local["):
        return None
    return Pulse(master if master.startswith("spark://") else "", Executors(context._jsc.sc()))
