"""Gangs on clusters: a barrier job of Spark, a placement group of Ray; Dask has neither, and says so."""

import os
import signal
import threading
import time

import psutil
import pytest
from clusters import Cluster
from running import until

import fourfold as ff
from fourfold.errors import EngineError, GangFailed, GangTimeout, UnsupportedOption


@pytest.fixture(autouse=True)
def gangs(cluster: Cluster, request: pytest.FixtureRequest) -> None:
    if cluster.kind == "dask" and request.node.originalname != "test_dask_is_refused_and_says_what_to_use":
        pytest.skip("not applicable: Dask starts no gangs")


def is_there(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_dask_is_refused_and_says_what_to_use(cluster: Cluster):
    if cluster.kind != "dask":
        pytest.skip("not applicable: this cluster starts gangs")
    with pytest.raises(UnsupportedOption, match=r'engine=.dask. starts no gangs.*engine="processes".*engine="ray"'):
        ff.launch(print, 2, engine=cluster.engine())


def test_values_come_in_the_order_of_ranks_and_ranks_find_each_other(cluster: Cluster):
    def fn(word):
        import socket

        rank, place = int(os.environ["RANK"]), (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        if rank == 0:
            with socket.create_server(place) as server:
                server.settimeout(30)
                peer, _ = server.accept()
                with peer:
                    heard = peer.recv(100).decode()
        else:
            deadline = time.monotonic() + 30
            while True:
                try:
                    peer = socket.create_connection(place, 1)
                    break
                except OSError:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
            with peer:
                peer.sendall(word.encode())
            heard = ""
        names = ("WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "FOURFOLD_RESTART_COUNT")
        return rank, heard, [os.environ[name] for name in names], os.getpid()

    first, second = ff.launch(fn, 2, ("hello",), engine=cluster.engine())
    assert first[:3] == (0, "hello", ["2", "0", "2", "0"])
    assert second[:3] == (1, "", ["2", "1", "2", "0"])
    until(lambda: not is_there(first[3]) and not is_there(second[3]), "the ranks have ended")
    assert ff.map(abs, [-1], engine=cluster.engine()) == [1]  # the cluster is as it was


def test_the_exception_of_a_rank_is_raised_and_the_others_end(cluster: Cluster, tmp_path):
    def fn():
        rank = os.environ["RANK"]
        (tmp_path / f"pid-{rank}").write_text(str(os.getpid()))
        print("words of", rank)
        if rank == "1":
            raise KeyError("the cause")
        signal.pause()

    with pytest.raises(KeyError, match="the cause") as caught:
        ff.launch(fn, 2, engine=cluster.engine(), log_dir=tmp_path / "logs", progress=False)
    assert caught.value.__notes__[0].startswith("fourfold: rank 1 of 2 on ")
    assert "words of 1" in caught.value.__notes__[1]
    assert 'raise KeyError("the cause")' in (tmp_path / "logs" / "rank-1.log").read_text()
    assert (tmp_path / "logs" / "rank-0.log").read_text() == "words of 0\n"
    for file in tmp_path.glob("pid-*"):
        until(lambda file=file: not is_there(int(file.read_text())), "the ranks have ended")


def test_a_rank_that_is_killed_is_named_and_the_gang_starts_again_from_its_checkpoint(cluster: Cluster, tmp_path):
    def fn(always):
        begun_at, count = ff.gang.restore(0), os.environ["FOURFOLD_RESTART_COUNT"]
        if os.environ["RANK"] == "0":
            ff.gang.checkpoint(begun_at + 1)
        if os.environ["RANK"] == "0" and (count == "0" or always):
            os.kill(os.getpid(), signal.SIGKILL)
        return begun_at if os.environ["RANK"] == "0" else None, count

    ended = ff.launch(fn, 2, (False,), max_restarts=1, checkpoint=tmp_path, engine=cluster.engine())
    assert ended == [(1, "1"), (None, "1")]
    with pytest.raises(GangFailed, match=r"^rank 0 of 2 on .* was killed by SIGKILL"):
        ff.launch(fn, 2, (True,), checkpoint=tmp_path, engine=cluster.engine())


def test_a_gang_that_hangs_ends_when_its_time_is_over_with_its_ranks(cluster: Cluster, tmp_path):
    def fn():
        (tmp_path / f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))
        signal.pause()

    with pytest.raises(GangTimeout, match="timeout=15"):
        ff.launch(fn, 2, engine=cluster.engine(), timeout=15)
    assert len([*tmp_path.glob("pid-*")]) == 2
    for file in tmp_path.glob("pid-*"):
        until(lambda file=file: not is_there(int(file.read_text())), "the ranks have ended")


def test_more_ranks_than_the_cluster_has_room_for_are_refused_before_anything_starts(cluster: Cluster, tmp_path):
    with pytest.raises(EngineError, match="world_size=500 is more than"):
        ff.launch((tmp_path / "ran").touch, 500, engine=cluster.engine())
    assert not (tmp_path / "ran").exists()


def test_ctrl_c_ends_the_ranks(cluster: Cluster, tmp_path):
    def fn():
        (tmp_path / f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))
        signal.pause()

    def interrupt():
        until(lambda: len([*tmp_path.glob("pid-*")]) == 2, "both ranks run", 60)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        ff.launch(fn, 2, engine=cluster.engine())
    thread.join()
    for file in tmp_path.glob("pid-*"):
        until(lambda file=file: not is_there(int(file.read_text())), "the ranks have ended")


def test_a_spark_whose_executors_come_and_go_is_refused(cluster: Cluster, monkeypatch):
    if cluster.kind != "spark":
        pytest.skip("not applicable: only Spark has dynamic allocation")
    engine = cluster.engine()
    real = type(engine.connection)._setting
    adapts = {"spark.dynamicAllocation.enabled": "true"}
    monkeypatch.setattr(
        type(engine.connection), "_setting", lambda self, name, otherwise: adapts.get(name) or real(self, name, otherwise)
    )
    with pytest.raises(UnsupportedOption, match=r"spark.dynamicAllocation.enabled=false"):
        ff.launch(print, 2, engine=engine)


def test_room_that_others_use_is_waited_for_and_then_given_up(cluster: Cluster, monkeypatch):
    if cluster.kind != "ray":
        pytest.skip("not applicable: Ray alone gives room")
    import ray

    from fourfold.distribute.engines.on_ray import gang

    monkeypatch.setattr(gang, "PLACE_S", 1.0)
    holder = ray.util.placement_group([{"CPU": 1}])
    assert holder.wait(30)
    try:
        with pytest.raises(EngineError, match=r"no room for 2 ranks at once within 1 s"):
            ff.launch(print, 2, engine=cluster.engine())
    finally:
        ray.util.remove_placement_group(holder)


def test_a_worker_of_the_cluster_that_dies_takes_its_rank_along_and_is_told(cluster: Cluster, tmp_path):
    if cluster.is_connect:
        pytest.skip("not applicable: on Connect Spark does not tell, and may start the gang again by itself")

    def fn():
        if os.environ["RANK"] == "1":
            (tmp_path / "worker").write_text(str(os.getppid()))
        signal.pause()

    def kill():
        until(lambda: (tmp_path / "worker").exists() and (tmp_path / "worker").read_text(), "rank 1 runs", 60)
        os.kill(int((tmp_path / "worker").read_text()), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(GangFailed, match=r"lost|gave the gang up"):
        ff.launch(fn, 2, engine=cluster.engine())
    thread.join()
    assert ff.launch(os.getpid, 1, engine=cluster.engine())
