"""Whether a call is the one that its folder was recorded by."""

import shlex
import time
from collections.abc import Mapping
from typing import Any

from fourfold.addresses import credentials_kept_out
from fourfold.errors import RunChanged
from fourfold.runs.fingerprint import differences, program_parts
from fourfold.runs.journal import Journal

DIFFERENCES_TOLD = 5


class Identity:
    """What a run is the record of: a kind of call, a program, and a class of items.

    Args:
        journal: Of the run.
        path: Its folder, as the user has written it.
    """

    def __init__(self, journal: Journal, path: str) -> None:
        self._journal, self._path = journal, path
        self._facts = journal.facts()

    def meet(self, kind: str, program: Mapping[str, Any]) -> bool:
        """Introduce a new call, or recognise the one that was here before.

        Args:
            kind: Of the call: "map" or "reduce".
            program: What the values depend on, by name.

        Returns:
            Whether the run does not know this program yet.

        Raises:
            RunChanged: It was recorded by something else.
        """
        facts = self._facts
        with credentials_kept_out():
            parts = program_parts(program)
        if "parts" not in facts:  # new, or its driver died before its first commit
            self._journal.tell(kind=kind, parts=parts, created_at=time.time())
            return True
        if facts["kind"] != kind:
            raise RunChanged(
                f"the run {self._journal.folder} was recorded by {facts['kind']}, and this is {kind}: use another folder"
            )
        if found := differences(facts["parts"], parts):
            self._refuse_unless_accepted(found)
            self._journal.tell(parts=parts)
            return True
        return False

    def meet_items(self, item: Any) -> None:
        """The first item's class is part of the program: its methods may be what the function calls.

        Raises:
            RunChanged: Items of another class were recorded.
        """
        parts = program_parts({"items": type(item)})
        recorded = self._facts.get("items")
        if recorded is None:
            self._journal.tell(items=parts)
        elif found := differences(recorded, parts):
            self._refuse_unless_accepted(found)
            self._journal.tell(items=parts)

    def _refuse_unless_accepted(self, found: list[str]) -> None:
        if not self._facts.get("accept_changes", False):
            told = "; ".join(found[:DIFFERENCES_TOLD]) + ("; and more" if len(found) > DIFFERENCES_TOLD else "")
            raise RunChanged(
                f"the run {self._journal.folder} was recorded by something else: {told}. To keep what it has and go on with "
                f"what you have now, type: fourfold resume {shlex.quote(self._path)} --accept-changes. To begin again, use "
                "another folder",
                differences=found,
            )
        self._journal.note("accepted changes", differences=found[:DIFFERENCES_TOLD])
