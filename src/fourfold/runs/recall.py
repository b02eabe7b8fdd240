"""What earlier calls have recorded, as it comes back: rows of done items, their values, and failures."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fourfold.errors import Indeterminate, JournalCorrupt, RemoteError, RunChanged
from fourfold.records import Failure, Parcel
from fourfold.runs.journal import PAGE, Journal
from fourfold.runs.seal import ERROR, VALUES
from fourfold.runs.tables import Done, FailedItem


class DoneRows:
    """The rows of done items, read one page after the other.

    Args:
        journal: Of the run.
        is_empty: It has none.
    """

    def __init__(self, journal: Journal, is_empty: bool) -> None:
        self._journal, self._page_is_last = journal, is_empty
        self._page: deque[Done] = deque()

    def row_of(self, index: int) -> Done | None:
        """The row that the item at `index` is in; asked for in the order of indices.

        Raises:
            JournalCorrupt: A row is not what was written.
        """
        while True:
            while self._page and index >= self._page[0].first + self._page[0].n_items:
                self._page.popleft()
            if self._page:
                return self._page[0] if self._page[0].first <= index else None
            if self._page_is_last:
                return None
            rows = self._journal.done_from(index)
            self._page_is_last = len(rows) < PAGE
            self._page.extend(rows)


class Recall:
    """Brings back what rows speak of.

    Args:
        journal: Of the run.
        load: What a parcel holds.
        unpickled: An exception, or None where it cannot be brought back.
        is_reduction: Rows may share partial results.
    """

    def __init__(
        self,
        journal: Journal,
        load: Callable[[Parcel], Any],
        unpickled: Callable[[Any], BaseException | None],
        is_reduction: bool,
    ) -> None:
        self._journal, self._load, self._unpickled, self._is_reduction = journal, load, unpickled, is_reduction
        self._given: set[int] = set()

    def values(self, done: Done) -> "RecordedValues":
        """The values of recorded items, read when they are looked at.

        Of a reduction's rows that share partial results, the first has them.
        """
        if done.value in self._given:
            return RecordedValues(list)
        if self._is_reduction:
            self._given.add(done.value)
        return RecordedValues(lambda: self._values_of(done))

    def _values_of(self, done: Done) -> list[Any]:
        what = f"the values of items {done.first} to {done.first + done.n_items - 1}"
        values: list[Any] = self._bring_back(done.value, VALUES, what)
        if not self._is_reduction and len(values) != done.n_items:
            raise JournalCorrupt(f"{self._journal.folder} has {len(values)} values where {what} should be")
        return values

    def _bring_back(self, value: int, kind: int, what: str) -> Any:
        parcel = self._journal.read(value, kind, what)
        try:
            return self._load(parcel)
        except Exception as error:
            raise RunChanged(
                f"{what} in {self._journal.folder} cannot be unpickled: {type(error).__name__}: {error}. Is a class gone that "
                "was there when they were recorded? Bring it back, or use another folder"
            ) from error

    def failure_of(self, failed: FailedItem) -> Failure:
        """A recorded failure as it was, with its exception where that can be brought back."""
        error: BaseException | None = None
        if failed.error:
            data = self._bring_back(failed.error, ERROR, f"the failure of item {failed.item}")
            error = self._unpickled(data)
        if failed.kind == "indeterminate":
            error = Indeterminate(failed.message)
        return Failure(
            index=failed.item,
            kind=failed.kind,
            error=error or RemoteError(f"{failed.error_type}: {failed.message}", error_type=failed.error_type),
            error_type=failed.error_type,
            message=failed.message,
            traceback=failed.traceback,
            item=failed.shown,
            attempts=failed.attempts,
            worker=failed.worker,
            place=failed.place,
        )


class RecordedValues(Sequence[Any]):
    """Values that are read from the journal when somebody looks at them."""

    def __init__(self, load: Callable[[], list[Any]]) -> None:
        self._load, self._values = load, None  # type: tuple[Callable[[], list[Any]], list[Any] | None]

    def _all(self) -> list[Any]:
        if self._values is None:
            self._values = self._load()
        return self._values

    def __len__(self) -> int:
        return len(self._all())

    def __getitem__(self, at: Any) -> Any:
        return self._all()[at]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._all())
