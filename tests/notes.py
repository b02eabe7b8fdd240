"""What a pytest notes for who runs it beside others (`scripts/again.py`): in its cache, at its end."""

import pytest


class Notes:
    """A plugin of pytest: which tests were late, and what those said that failed."""

    def __init__(self) -> None:
        self.late: list[str] = []
        self.failed: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:  # a test that fails may fail once more when it is cleared away
            self.failed.setdefault(report.nodeid, report.longreprtext)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        cache = getattr(session.config, "cache", None)  # it may be switched off
        if cache is not None:
            cache.set("fourfold/late", self.late)
            cache.set("fourfold/failed", self.failed)
