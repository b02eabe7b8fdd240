"""The tests that every engine passes, for engines of your own.

    import pytest
    from fourfold.testing import EngineContract

    class TestMyEngine(EngineContract):
        @pytest.fixture
        def make_engine(self):
            return lambda: MyEngine(workers=2)

It needs pytest, and engines whose workers are on this machine: items and tests meet at named pipes and files.
`Chaos(MyEngine())` is an engine too: its outcomes come late, in any order, and some of them twice.
"""

from fourfold.testing.answers import Answers
from fourfold.testing.calls import Calls
from fourfold.testing.chaos import Chaos
from fourfold.testing.ends import Ends
from fourfold.testing.failures import Failures
from fourfold.testing.rig import Gate, Rig, stop_at
from fourfold.testing.tickets import Tickets

__all__ = ["Chaos", "EngineContract", "Gate", "Rig", "stop_at"]


class EngineContract(Tickets, Ends, Calls, Failures, Answers):
    """What holds for every engine, and what its `info` says of it. Override `make_engine`."""
