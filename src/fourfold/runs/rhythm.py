"""When a run writes: a line of the tail at once, commits in groups, and to the disk itself now and then.

Each has its share of the driver's time at most: on a slow disk it comes less often. Times come from whoever asks.
"""

COMMIT_S = 0.5
"""Seconds between commits. Smaller: more of them (0.2 ms each). Larger: `fourfold show` is later, and the tail longer."""

COMMIT_SHARE = 0.01
"""Share of the driver's time that commits may take: on a slow disk they come less often. Not measured on one."""

TAIL_SHARE = 0.2
"""Share of the driver's time that lines of the tail may take. Smaller: more runs again after a kill, when items are short or
the disk slow. Larger: such items are slowed down by more; with chunks of 10 ms and up there is no difference."""

SYNC_S = 5.0
"""Seconds between two writes to the disk itself, for the case that the machine loses its power. Smaller: the driver waits
for the disk more often (1 to 30 ms each time). Larger: more runs again after that. Not measured on a spinning disk."""


class Rhythm:
    """Knows when each was done last, and how long it took.

    Args:
        now: The time, in seconds of any clock.
    """

    def __init__(self, now: float) -> None:
        self._committed_at = self._told_at = self._synced_at = now
        self._commit_took_s = 0.0
        self._lines_took_s = (0.0, 0.0)
        """The last two: of one alone nobody knows whether it waited for a core, or for the disk."""

    def is_time_to_commit(self, now: float) -> bool:
        """Whether a commit is due, which a line would only put off."""
        return now - self._committed_at >= max(COMMIT_S, self._commit_took_s / COMMIT_SHARE)

    def is_time_for_a_line(self, now: float) -> bool:
        """Whether a line takes no more than its share now."""
        return now - self._told_at >= min(self._lines_took_s) / TAIL_SHARE

    def is_time_to_sync(self, now: float) -> bool:
        """Whether values are to be brought to the disk itself before the next commit."""
        return now - self._synced_at > SYNC_S

    def committed(self, begin: float, end: float) -> None:
        """A commit was made."""
        self._committed_at, self._commit_took_s = end, end - begin

    def told(self, begin: float, end: float) -> None:
        """A line was written."""
        self._told_at, self._lines_took_s = end, (self._lines_took_s[1], end - begin)

    def synced(self, now: float) -> None:
        """Values are brought to the disk."""
        self._synced_at = now
