"""What a pytest notes for who runs it beside others (`scripts/again.py`): in its cache, at its end."""

import pytest


class Notes:
    """A plugin of pytest: which tests were late, and what those said that failed."""

    def __init__(self) -> None:
        self.late: list[str] = []
        self.failed: dict[str, str] = {}
        self.is_final = False
        """Something failed that no test alone can show: nothing is noted, and so nothing is forgiven."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:  # a test that fails may fail once more when it is cleared away
            self.failed.setdefault(report.nodeid, report.longreprtext)

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        cache = getattr(session.config, "cache", None)  # it may be switched off
        is_whole = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)  # neither interrupted nor broken
        if cache is not None and is_whole and not self.is_final:
            cache.set("fourfold/late", self.late)
            cache.set("fourfold/failed", self.failed)
