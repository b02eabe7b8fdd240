"""The contract of engines, on a real cluster."""

from collections.abc import Callable

import pytest

from fourfold.distribute.engine import Engine
from fourfold.testing import EngineContract


class TestCluster(EngineContract):
    @pytest.fixture
    def make_engine(self, cluster: "object") -> Callable[[], Engine]:
        return cluster.engine
