"""The head of a Ray cluster, looked at from outside: most functions of Ray wait for one that is gone, for a minute."""

import contextlib
import math
import threading
import time

from fourfold.distribute.connection import check_that_somebody_listens
from fourfold.distribute.engines.on_ray import library
from fourfold.distribute.keeper import Keeper
from fourfold.errors import EngineError

LOOK_S = 2.0
"""Seconds between looks whether the head of the cluster is there. Not measured: one look takes less than a millisecond."""

ANSWER_S = 10.0
"""Seconds in which the head must say which machines there are, if it is there. Shorter: a slow one is asked again."""

SILENT_S = 20.0
"""Seconds of a head that nobody reaches until it counts as gone. Longer: one that starts again is waited for; but after 60
Ray ends this process, whatever it is doing."""


class Head:
    """Looks whether the head is there, and asks it which machines there are.

    Args:
        address: Where it listens, "host:port"; "": it is not looked at.
        keeper: Holds it, when it was started here.
    """

    def __init__(self, address: str, keeper: Keeper | None) -> None:
        self.address, self._keeper = address, keeper
        self._looked_at = self._heard_at = time.monotonic()
        self._silence = ""
        self._asker: threading.Thread | None = None

    def is_heard(self, now: bool = False) -> bool:
        """Whether it can be reached.

        Args:
            now: Look, however short ago that was done.

        Raises:
            EngineError: It is gone, for good or for too long.
        """
        at = time.monotonic()
        if self.address and (now or at - self._looked_at >= LOOK_S):
            self._looked_at = at
            try:
                if self._keeper is not None and not self._keeper.is_alive():
                    self._heard_at = -math.inf  # and never again
                    raise EngineError("the Ray that was started here was ended")
                check_that_somebody_listens(self.address)
            except EngineError as error:
                self._silence = f"Ray is gone: {error}"
            else:
                self._heard_at = at
        is_heard = self._heard_at >= self._looked_at
        if not is_heard and (now or self._looked_at - self._heard_at >= SILENT_S):
            raise EngineError(self._silence)  # to whoever asks, until it answers again
        return is_heard

    def machines(self) -> list[dict[str, float]] | None:
        """What each machine of the cluster has; None when the head does not answer.

        It is asked in a thread: who asks a head that is gone waits for a minute, and then Ray ends the process.
        """
        if not self.is_heard() or (self._asker is not None and self._asker.is_alive()):
            return None
        found: list[list[dict[str, float]]] = []

        def ask() -> None:
            with contextlib.suppress(Exception):
                found.append([machine["Resources"] for machine in library.ray().nodes() if machine["Alive"]])

        self._asker = threading.Thread(target=ask, name="fourfold-ray", daemon=True)
        self._asker.start()
        self._asker.join(ANSWER_S)
        return found[0] if found else None
