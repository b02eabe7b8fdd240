"""What engines on clusters share: what becomes of replies, what has which name, who has which worker process."""

import gc
import os
import pickle
import socket
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from running import run_script, until

import fourfold as ff
import fourfold.site as site
from fourfold.call import Call
from fourfold.distribute import orders as orders_module
from fourfold.distribute.cargo import make_entry
from fourfold.distribute.engines.on_ray.head import LOOK_S, SILENT_S, Head
from fourfold.distribute.orders import DOWN_IN_A_ROW, DOWN_S, Orders, Stored, parts_of
from fourfold.engines import Ray, Spark
from fourfold.errors import EngineError, VersionMismatch
from fourfold.execute.parcels import ParcelCodec
from fourfold.options import resolve
from fourfold.records import Chunk, Kind, Need, Outcome, Parcel, Ticket
from fourfold.version import VERSION


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    clock = types.SimpleNamespace(now=1000.0)
    monkeypatch.setattr(orders_module, "time", types.SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def reply(kind: Kind) -> dict[str, Any]:
    return site._reply(Outcome(0, kind, reason="no room", worker="here"))


def test_all_that_a_worker_knows_of_a_ticket_reaches_the_driver() -> None:
    parcel = Parcel(b"head", (b"buffer",))
    told = Outcome(
        7, Kind.LOST, parcel, (3, 1), "died", "worker", "stack", True, True, (("stdout", 0, "hello"),), (parcel, parcel)
    )
    assert None not in told
    assert all(told._asdict().values()), "each differs from what it is by itself"
    known = Orders(VERSION, ()).outcome(7, pickle.loads(pickle.dumps(site._reply(told), protocol=5)))
    assert plain(known) == plain(told)


def test_a_machine_that_cannot_unpack_what_travels_along_is_named_in_a_reply_like_any_other() -> None:
    def no_room() -> bytes:
        raise OSError("no room")

    answer = make_entry()(VERSION, "cargo-that-nobody-has", no_room, b"an order")
    outcome = Orders(VERSION, ()).outcome(3, pickle.loads(pickle.dumps(answer)))
    assert (outcome.id, outcome.kind, outcome.worker) == (3, Kind.COLLATERAL, socket.gethostname())
    assert outcome.reason == f"{socket.gethostname()} cannot run items: OSError: no room"


def plain(outcome: Outcome) -> Outcome:
    """With parcels that can be compared."""
    parts = [(bytes(each.head), *map(bytes, each.buffers)) for each in (outcome.data, *outcome.kept)]
    return outcome._replace(data=parts[0], kept=tuple(parts[1:]))


def test_a_sick_machine_that_answers_at_once_ends_no_run_whose_items_take_long(clock: types.SimpleNamespace) -> None:
    orders = Orders(VERSION, ())
    clock.now += 10 * DOWN_S  # the last good reply is long ago
    kinds = [orders.outcome(id, reply(Kind.ENGINE_DOWN)).kind for id in range(3 * DOWN_IN_A_ROW)]
    assert set(kinds) == {Kind.COLLATERAL}
    clock.now += DOWN_S / 2
    assert orders.outcome(99, reply(Kind.CANCELLED)).kind is Kind.CANCELLED
    clock.now += DOWN_S
    assert orders.outcome(100, reply(Kind.ENGINE_DOWN)).kind is Kind.COLLATERAL


def test_machines_none_of_which_can_start_a_worker_end_the_run(clock: types.SimpleNamespace) -> None:
    orders = Orders(VERSION, ())
    for id in range(DOWN_IN_A_ROW):
        clock.now += 1.1 * DOWN_S / (DOWN_IN_A_ROW - 1)
        outcome = orders.outcome(id, reply(Kind.ENGINE_DOWN))
    assert outcome.kind is Kind.ENGINE_DOWN


HERE = {
    "host": "there",
    "python": sys.version_info[:3],
    "executable": "/there/bin/python",
    "fourfold": VERSION,
    "cloudpickle": "3.0",
}


@pytest.mark.contract(35)
def test_workers_with_another_version_are_refused_with_both_and_what_to_do() -> None:
    with pytest.raises(
        VersionMismatch, match=rf"the workers on there: fourfold 0\.0\.9 is there and this is {VERSION}: install"
    ):
        Orders(VERSION, ()).check({**HERE, "fourfold": "0.0.9"}, "the workers")
    with pytest.raises(VersionMismatch, match=r"Python 3\.1\.4 runs there \(/there/bin/python\) and this is Python 3\."):
        Orders(VERSION, ()).check({**HERE, "python": (3, 1, 4)}, "the workers")


@pytest.mark.contract(35)
def test_fourfold_travels_to_workers_that_have_none() -> None:
    there = Orders(VERSION, ())
    assert not there.check(HERE, "the workers")
    assert there.cargo == b""
    assert there.check({**HERE, "fourfold": ""}, "the workers")
    assert there.cargo


@pytest.mark.contract(35)
def test_a_worker_that_has_another_version_later_ends_the_run_with_both() -> None:
    outcome = Orders(VERSION, ()).outcome(7, "fourfold 0.0.9")
    assert (outcome.id, outcome.kind) == (7, Kind.ENGINE_DOWN)
    assert outcome.reason == f"a worker has fourfold 0.0.9, and this is fourfold {VERSION}"


def test_no_two_calls_name_their_jobs_alike_also_when_one_lies_where_the_other_lay() -> None:
    """On Spark Connect what a call stores has the name of its job, and is not stored again under the same one."""
    names = set()
    for _ in range(200):
        names.add(Spark()._name)
        gc.collect(0)
    assert len(names) == 200


def test_all_tickets_are_told_that_ray_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    exceptions = pytest.importorskip("ray").exceptions

    def get(ref: str) -> None:
        raise exceptions.RaySystemError("the raylet is gone")

    fake = types.SimpleNamespace(
        exceptions=exceptions, get=get, is_initialized=lambda: True, wait=lambda refs, **options: (refs, [])
    )
    monkeypatch.setattr("fourfold.distribute.engines.on_ray.library.ray", lambda: fake)
    engine = Ray()
    engine.connection._orders = Orders(VERSION, ())
    engine._flying = {"one": 1, "two": 2, "three": 3}
    outcomes = engine.wait(0)
    assert sorted((outcome.id, outcome.kind) for outcome in outcomes) == [(id, Kind.ENGINE_DOWN) for id in (1, 2, 3)]


def test_a_head_that_is_silent_for_too_long_is_told_to_whoever_asks() -> None:
    """Also to the second one: the first may have asked for something that can wait."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        head = Head(f"127.0.0.1:{closed.getsockname()[1]}", None)
        head._looked_at -= LOOK_S
        assert not head.is_heard()
        head._heard_at -= SILENT_S
        for _ in range(2):
            with pytest.raises(EngineError, match=r"^Ray is gone: nobody listens at 127\.0\.0\.1:"):
                head.is_heard()
        closed.listen()
        head._looked_at -= LOOK_S
        assert head.is_heard()


def test_a_head_that_ended_with_its_keeper_is_told_at_once() -> None:
    head = Head("127.0.0.1:1", types.SimpleNamespace(is_alive=lambda: False))  # type: ignore[arg-type]
    head._looked_at -= LOOK_S
    for _ in range(2):
        with pytest.raises(EngineError, match=r"^Ray is gone: the Ray that was started here was ended$"):
            head.is_heard()


LOOKS_FOR_RAY = """
    import os, sys
    from ray._private import services, utils
    import fourfold as ff
    from fourfold.engines import Ray

    services.find_gcs_addresses = set  # that somebody else on this machine has a Ray is another matter
    with open(utils.get_ray_address_file(None), "w") as file:
        file.write(sys.argv[1])
    try:
        ff.map(abs, [1], engine=Ray(*sys.argv[2:]))
    except ff.errors.EngineError as error:
        print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("address", "variable"), [(["auto"], ""), ([], "auto")], ids=["argument", "variable"])
def test_the_address_that_a_dead_ray_has_left_is_told_and_not_waited_for(
    address: list[str], variable: str, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    (tmp_path / "ray").mkdir()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        left = f"127.0.0.1:{closed.getsockname()[1]}"
        where = {"RAY_TMPDIR": str(tmp_path), "RAY_ADDRESS": variable}
        ended = run_script(LOOKS_FOR_RAY, left, *address, folder=tmp_path, **where)
    assert ended.stdout.startswith(f"nobody listens at {left}: "), ended.stderr
    assert f"{tmp_path / 'ray' / 'ray_current_cluster'}, where a Ray leaves it that is killed. Start one" in ended.stdout


# ---- worker processes beside a cluster's own


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Does what a task of a cluster does with a chunk of one item; returns the item's value."""
    monkeypatch.setattr(site, "SWEEP_S", 0.05)  # the thread that looks for idle processes ends at its next look

    def run(fn: Callable[[Any], Any], cargo: Path | None = None, gpus: int = 0) -> Any:
        call = Call(fn, (), resolve({"engine": Spark()}))
        program = call._lane.program()
        orders, codec, need = Orders(VERSION, ()), ParcelCodec(), Need(gpus=gpus)
        payload, _ = codec.pack(Chunk(0, [1]))
        key = f"{orders.key_of(program, need)}{cargo}"
        _, order = orders.order(Ticket(0, key, payload, 1), Stored(key, None, need))
        reply = site.run(order, parts_of(payload), lambda: parts_of(program), str(cargo) if cargo else "")
        outcome = orders.outcome(0, pickle.loads(pickle.dumps(reply, protocol=5)))
        assert outcome.kind is Kind.DONE, outcome
        return codec.unpack(outcome.data)[0].values[0]

    yield run
    site.close()


def pid(item: int) -> int:
    return os.getpid()


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_functions_that_have_one_home_have_one_process(run: Callable[..., Any]) -> None:
    assert run(pid) == run(lambda item: os.getpid()) != os.getpid()


def test_code_that_has_changed_on_its_way_is_what_runs(run: Callable[..., Any], tmp_path: Path) -> None:
    def use(item: int) -> tuple[str, int]:
        import mine_that_changes

        return mine_that_changes.VERSION, os.getpid()

    for version in ("first", "second"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "mine_that_changes.py").write_text(f"VERSION = {version!r}\n")
    first, second, again = (run(use, tmp_path / version) for version in ("first", "second", "first"))
    assert (first[0], second[0], again[0]) == ("first", "second", "first")
    assert len({first[1], second[1], again[1]}) == 3


def test_the_first_code_that_travels_sweeps_away_what_nobody_uses(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeps: list[bool] = []
    monkeypatch.setattr(site, "remove_unused", lambda: sweeps.append(True))
    monkeypatch.setattr(site, "_homes_seen", [])
    run(pid)
    assert sweeps == []
    run(pid, tmp_path)
    run(pid, tmp_path)
    assert sweeps == [True]


def test_another_device_has_another_process(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pids = []
    for device in ("0", "0", "1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", device)
        pids.append(run(pid, gpus=1))
    assert pids[0] == pids[1] != pids[2]


def test_a_process_that_had_a_device_soon_lets_go_of_it(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "GPU_IDLE_S", 0.2)
    with_device = run(pid, gpus=1)
    until(lambda: not is_alive(with_device), "the process ends")
    without = run(pid)
    time.sleep(0.5)
    assert is_alive(without)


def test_what_ends_beside_a_driver_in_the_same_process_is_not_the_drivers(run: Callable[..., Any]) -> None:
    """As with `distributed.Client(processes=False)`."""
    run(pid)
    stream = ff.imap(lambda x: time.sleep(0.01) or x, range(50), engine="processes", workers=1, chunk=1)
    values = [next(stream)]
    site.close()
    assert [*values, *stream] == [*range(50)]
    assert stream.report.n_workers_lost == 0
