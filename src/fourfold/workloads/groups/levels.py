"""What is kept of groups: keys, what became of each, and where its model is."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from fourfold.workloads.groups.keys import Key, keys_of
from fourfold.workloads.groups.one import OK, Fitted
from fourfold.workloads.groups.pickled import Pickled
from fourfold.workloads.groups.rows import Group


class Pickles(Protocol):
    """Where the pickled models of a level are."""

    def __getitem__(self, at: int) -> Pickled | None:
        """That of a group; None when it has none."""


class Level(NamedTuple):
    """The groups whose keys have so many columns.

    Attributes:
        keys: Theirs, as an Arrow table.
        places: Of each key, its row in this table.
        facts: Columns of what became of them: rows, status, seconds, score, error.
        pickles: Their models.
    """

    keys: Any
    places: dict[Key, int]
    facts: dict[str, list[Any]]
    pickles: Pickles

    @classmethod
    def of(cls, keys: Any, groups: Sequence[Group], ended: Sequence[Fitted]) -> "Level":
        """What came of these groups."""
        facts = {
            "rows": [each.n_rows for each in groups],
            **{name: [getattr(each, name) for each in ended] for name in ("status", "seconds", "score", "error")},
        }
        places = {group.key: at for at, group in enumerate(groups)}
        return cls(keys, places, facts, [each.model for each in ended])

    @classmethod
    def read(cls, keys: Any, facts: dict[str, list[Any]], pickles: Pickles) -> "Level":
        """What was stored."""
        return cls(keys, {key: at for at, key in enumerate(keys_of(keys.columns, len(facts["rows"])))}, facts, pickles)

    def has_model(self, at: int) -> bool:
        """Whether that group has one."""
        return bool(self.facts["status"][at] == OK)
