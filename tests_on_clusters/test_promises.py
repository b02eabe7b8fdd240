"""What `fourfold.map` promises, on a real cluster: the same as on this machine.

What every engine promises is in the contract suite (test_contract.py).
"""

import importlib
import itertools
import logging
import os
import signal
import sys
import textwrap
import time
import types
from pathlib import Path

import cloudpickle
import psutil
import pytest
from clusters import Cluster
from running import SCALE, run_script, until

import fourfold as ff
from fourfold.engines import Dask
from fourfold.errors import OptionError, UnsupportedOption, VersionMismatch
from fourfold.records import Need, Parcel


@pytest.fixture
def options(cluster: Cluster):
    return {"engine": cluster.engine()}


# ---- items that fail


def test_an_item_that_takes_too_much_memory_costs_one_item(options):
    def grow(x):
        return len(bytearray(600 << 20)) if x == 1 else x

    results = ff.map(grow, range(4), memory=300 << 20, on_error="collect", **options)
    assert [failure.index for failure in results.failures] == [1]
    assert "MemoryError" in results.failures[0].error_type


def test_retries_are_for_items_that_raise(options, tmp_path):
    def flaky(x):
        path = tmp_path / str(x)
        with open(path, "a") as file:
            file.write("x")
        if len(path.read_text()) < 3:
            raise OSError("not yet")
        return x

    assert ff.map(flaky, range(4), retries=2, **options) == list(range(4))


# ---- what is said, and what is kept


def test_what_items_print_and_log_arrives_here(options, capsys, caplog):
    def speak(x):
        print("printed", x)
        logging.getLogger("mine").warning("logged %d", x)
        return x

    with caplog.at_level(logging.WARNING):
        ff.map(speak, range(3), **options)
    out = capsys.readouterr().out
    assert [f"[item {x}] printed {x}" in out for x in range(3)] == [True] * 3
    assert sorted(record.getMessage() for record in caplog.records if record.name == "mine") == [
        f"[item {x}] logged {x}" for x in range(3)
    ]


def test_a_run_that_stops_on_the_cluster_goes_on_in_the_loop(options, tmp_path):
    ran = tmp_path / "ran"
    broken = tmp_path / "broken"
    broken.touch()

    def fn(x):
        if x == 30 and broken.exists():
            raise ValueError("stop here")
        with open(ran, "a") as file:
            file.write(f"{x}\n")
        return x * 3

    run = str(tmp_path / "run")
    with pytest.raises(ValueError, match="stop here"):
        ff.map(fn, range(60), run=run, chunk=5, **options)
    broken.unlink()
    results = ff.map(fn, range(60), run=run, engine="serial")
    assert results == [x * 3 for x in range(60)]
    assert results.report.n_recorded > 0


# ---- environments


def test_a_module_of_the_users_travels_when_it_is_shipped(cluster, tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("def triple(x):\n    return x * 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import only_here

    results = ff.map(only_here.triple, range(5), engine=cluster.engine(ship=[only_here]))
    assert results == [0, 3, 6, 9, 12]
    del sys.modules["only_here"]


def test_a_module_that_has_changed_travels_anew(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(tmp_path))
    for version in (1, 2):
        (tmp_path / "changing.py").write_text(f"def f(x):\n    return x + {version}\n")
        sys.modules.pop("changing", None)
        importlib.invalidate_caches()
        changing = importlib.import_module("changing")
        assert ff.map(changing.f, range(4), engine=cluster.engine(ship=[changing])) == [x + version for x in range(4)]
    del sys.modules["changing"]


@pytest.mark.contract(23)
def test_what_travels_survives_the_worker_that_keeps_it(cluster, tmp_path):
    if cluster.kind != "dask":
        pytest.skip("not applicable: Ray and Spark keep it apart from their workers")
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "words.txt").write_text("here\n")
    engine = cluster.engine(ship=[str(tmp_path / "beside")])
    client = engine.connection.client if engine.connection.client is not None else engine.connection._given

    def lose_who_keeps_it():
        (workers,) = client.who_has([engine.connection.cargo]).values()
        for pid in client.run(os.getpid, workers=[*workers]).values():
            os.kill(pid, signal.SIGKILL)
        until(lambda: not {*workers} & {*client.scheduler_info(n_workers=-1)["workers"]}, "Dask has noticed it")

    assert ff.map(abs, range(4), engine=engine) == [0, 1, 2, 3]
    lose_who_keeps_it()
    stream = ff.imap(lambda x: time.sleep(0.01) or x, range(60), engine=engine, chunk=1)
    values = [next(stream)]
    lose_who_keeps_it()
    assert [*values, *stream] == list(range(60))


def test_a_chunk_on_dask_does_not_carry_the_function_of_its_task(cluster, monkeypatch):
    """It would be pickled in the client and in the scheduler, and unpickled in the scheduler and the worker, each time."""
    if cluster.kind != "dask":
        pytest.skip("not applicable: Ray keeps it, and Spark sends it with a job of many chunks")
    engine = cluster.engine()
    ff.map(abs, range(4), engine=engine)
    client, sizes = engine.connection.client, []
    submit = client.submit

    def measured(*work, **how):
        sizes.append(len(cloudpickle.dumps(work)))
        return submit(*work, **how)

    monkeypatch.setattr(client, "submit", measured)
    assert ff.map(abs, range(8), engine=engine, chunk=4) == list(range(8))
    assert len(sizes) == 2
    assert max(sizes) < 2000


@pytest.mark.contract(9)
def test_a_module_that_is_not_there_is_named_before_work_starts(options, tmp_path, monkeypatch):
    (tmp_path / "not_there.py").write_text("def f(x):\n    return x\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import not_there

    with pytest.raises(ModuleNotFoundError, match="not_there") as caught:
        ff.map(not_there.f, range(5), **options)
    assert any("ship=" in note for note in caught.value.__notes__)
    del sys.modules["not_there"]


@pytest.mark.parametrize("what", ["folder", "wheel"])
def test_folders_and_wheels_travel(cluster, tmp_path, what, monkeypatch):
    package = tmp_path / "src" / f"parcel_{what}"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("VALUE = 42\n")
    (package / "data.txt").write_text("beside it\n")
    if what == "wheel":
        import zipfile

        path = tmp_path / "parcel-1-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            for file in package.iterdir():
                wheel.write(file, f"{package.name}/{file.name}")
    else:
        path = package

    def use(x):
        import importlib

        module = importlib.import_module(package_name)
        return module.VALUE + x, Path(module.__file__).with_name("data.txt").read_text()

    package_name = package.name
    assert ff.map(use, [1], engine=cluster.engine(ship=[str(path)])) == [(43, "beside it\n")]


def test_what_cannot_travel_is_refused_at_once(cluster):
    for nonsense in ("no-such-file.whl", 3, types.ModuleType("made_up")):
        with pytest.raises((OptionError, ModuleNotFoundError)):
            ff.map(abs, [1], engine=cluster.engine(ship=[nonsense]))


@pytest.mark.contract(35)
def test_another_python_is_refused(options, monkeypatch):
    monkeypatch.setattr("fourfold.distribute.orders.sys", types.SimpleNamespace(version_info=(3, 99, 0)))
    with pytest.raises(VersionMismatch, match=r"this is Python 3\.99\.0"):
        ff.map(abs, [1], **options)


def test_options_that_it_cannot_keep_are_refused_before_anything_starts(options):
    honours = options["engine"].info.honours
    if "idempotent" in honours:
        assert ff.map(abs, [-1], idempotent=False, **options) == [1]
        return
    with pytest.raises(UnsupportedOption, match="idempotent"):
        ff.map(abs, [-1], idempotent=False, **options)


@pytest.mark.contract(27, "spark", "ray", "dask")
def test_workers_that_take_gpus_are_as_many_as_there_are_gpus(options, cluster, tmp_path):
    if not cluster.n_gpus:
        pytest.skip("not applicable: this cluster has no GPUs, and what asks for one is refused (test_contract.py)")

    def fn(x):
        mine = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        mark = tmp_path / f"running-{x}-on-{mine}"
        mark.touch()
        time.sleep(0.1)
        running = [path.name.partition("-on-")[2] for path in tmp_path.glob("running-*")]
        mark.unlink()
        return running, mine

    results = ff.map(fn, range(12), gpus=1, chunk=1, **options)
    assert max(len(running) for running, _ in results) <= cluster.n_gpus
    if cluster.kind == "ray":
        assert {mine for _, mine in results} == {"0"}  # the only one of each machine
    if cluster.kind == "dask":  # two workers on one machine, and Dask counts only
        assert {mine for _, mine in results} <= {"0", "1"}
        assert all(len(set(running)) == len(running) for running, _ in results)


@pytest.mark.contract(27, "dask")
def test_tasks_at_the_same_time_see_each_its_own_gpu_also_in_one_worker(cluster, tmp_path):
    if cluster.kind != "dask":
        pytest.skip("Ray and Spark say which task has which")
    from distributed import Client, LocalCluster

    def fn(x):
        """Its devices, and whether nobody else has them while this one waits for the other task."""
        mine = os.environ["CUDA_VISIBLE_DEVICES"]
        descriptor = os.open(tmp_path / f"device-{mine}", os.O_CREAT | os.O_EXCL)
        deadline = time.monotonic() + 20
        while len(list(tmp_path.glob("device-*"))) < 2 and x < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.close(descriptor)
        time.sleep(0.05)
        os.unlink(tmp_path / f"device-{mine}")
        return mine

    options = {"host": "127.0.0.1", "dashboard_address": None, "resources": {"GPU": 2}}
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, **options) as machine,
        Client(machine, set_as_default=False) as client,
    ):
        seen = ff.map(fn, range(8), gpus=1, chunk=1, engine=Dask(client=client))
        assert set(seen) == {"0", "1"}
        assert set(ff.map(lambda x: os.environ["CUDA_VISIBLE_DEVICES"], range(2), gpus=2, engine=Dask(client=client))) == {
            "0,1"
        }


@pytest.mark.contract(27, "spark")
def test_each_worker_has_gpus_of_its_own(options, cluster):
    if not cluster.gpu_ids:
        pytest.skip("no machine of this cluster has several GPUs")

    def fn(x):
        begin = time.monotonic()
        above = psutil.Process().parents()
        machine = next(each.pid for each in above if "CoarseGrainedExecutorBackend" in " ".join(each.cmdline()))
        time.sleep(0.2)
        return machine, os.environ.get("CUDA_VISIBLE_DEVICES", ""), begin, time.monotonic()

    results = sorted(ff.map(fn, range(16), gpus=1, chunk=1, **options))
    assert {device for _, device, _, _ in results} == cluster.gpu_ids
    for (*place, _, end), (*next_place, begin, _) in itertools.pairwise(results):
        assert place != next_place or end <= begin  # no two have it at once
    assert {value[1] for value in ff.map(fn, range(4), gpus=2, chunk=1, **options)} == {",".join(sorted(cluster.gpu_ids))}
    assert {value[1] for value in ff.map(fn, range(4), chunk=1, **options)} == {""}


@pytest.mark.contract(27, "spark")
def test_a_cluster_has_as_many_slots_as_its_gpus_allow(options, cluster):
    if not cluster.gpu_ids:
        pytest.skip("no machine of this cluster has several GPUs")
    engine = options["engine"]
    engine.open()
    slots = {}
    for gpus in (0, 1, 2):
        engine.put("program", Parcel(b"", ()), Need(gpus=gpus))
        slots[gpus] = engine.slots()
        engine.drop("program")
    assert slots == {0: 6, 1: 4, 2: 2}  # two machines of three cores and two GPUs


WRONG = {
    "ray": ["127.0.0.1:9", "ray://127.0.0.1:9"],
    "dask": ["tcp://127.0.0.1:9"],
    "spark": ["spark://127.0.0.1:9", "sc://127.0.0.1:9"],
}


@pytest.mark.contract(35)
def test_a_wrong_address_is_told_in_seconds(cluster, tmp_path):
    for address in WRONG[cluster.kind]:
        text = f"""
            import fourfold as ff, fourfold.engines

            if __name__ == "__main__":
                ff.map(abs, [1], engine=fourfold.engines.{cluster.kind.capitalize()}({address!r}))
        """
        begin = time.monotonic()
        ended = run_script(text, folder=tmp_path)
        assert time.monotonic() - begin < 15 * SCALE
        assert f"EngineError: nobody listens at {address}: " in ended.stderr.splitlines()[-1]
        assert (ended.code, ended.survivors) == (1, [])


def test_the_verdict_tells_what_it_took_to_connect(cluster, monkeypatch):
    monkeypatch.setattr("fourfold.call.SLOW_OPENING", 0.0)  # where the library is loaded it takes less than a tenth of a call
    engine = cluster.engine()
    assert "to connect to" in ff.map(abs, [1], engine=engine).report.verdict
    assert "to connect to" not in ff.map(abs, [1], engine=engine).report.verdict


# ---- what is somebody else's stays as it is


@pytest.mark.contract(37)
def test_a_session_or_client_of_yours_keeps_what_it_has(options, cluster):
    look = {"ray": look_at_ray, "dask": look_at_dask, "spark": look_at_spark}[cluster.kind]
    before = look(options["engine"])
    ff.map(abs, range(4), **options)
    with pytest.raises(ZeroDivisionError):
        ff.map(lambda x: 1 / x, range(4), **options)
    assert look(options["engine"]) == before


def look_at_ray(engine):
    import ray

    return ray.get_runtime_context().get_job_id(), ray.get_runtime_context().namespace


def look_at_dask(engine):
    from distributed.client import _get_global_client

    client = engine.connection._given
    return client, client.status, _get_global_client(), dict(client.get_metadata([], {}))


def look_at_spark(engine):
    session = engine.connection._given
    settings = {row.key: row.value for row in session.sql("set").collect()}
    if type(session).__module__.startswith("pyspark.sql.connect"):
        return settings, session.getTags()
    context = session.sparkContext
    properties = [context.getLocalProperty(f"spark.{name}") for name in ("jobGroup.id", "job.tags", "job.description")]
    return settings, session.getTags(), context.getJobTags(), properties, dict(context.getConf().getAll())


OTHERS = {
    "spark": """
        from pyspark.sql import SparkSession
        SparkSession.getActiveSession().stop()
        mine = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
        is_mine = lambda: SparkSession.getActiveSession() is mine and mine.range(3).count() == 3
    """,
    "ray": """
        import os, ray
        ray.shutdown()
        assert ff.map(abs, [-1], engine="ray") == [1]
        ray.shutdown()
        ray.init(os.environ.get("GIVEN", "local"), configure_logging=False, log_to_driver=False)
        mine = ray.get_runtime_context().get_job_id()
        is_mine = lambda: ray.get_runtime_context().get_job_id() == mine and "CPU" in ray.cluster_resources()
    """,
}


@pytest.mark.contract(37)
def test_a_session_that_takes_the_place_of_ours_is_yours(cluster, tmp_path):
    if cluster.kind not in OTHERS or not cluster.starts_by_itself:
        pytest.skip("not applicable: a process may have several clients here")
    text = f"""
        import fourfold as ff
        import fourfold.lanes as lanes

        if __name__ == "__main__":
            kind = {cluster.kind!r}
            assert ff.map(abs, [-1], engine=kind) == [1]
            {textwrap.indent(textwrap.dedent(OTHERS[cluster.kind]), " " * 12).strip()}
            assert is_mine()
            assert ff.map(abs, [-1], engine=kind) == [1]
            lanes._clusters[kind].shutdown()
            assert is_mine()
            print("fine")
    """
    given = cluster.environment().get("RAY_ADDRESS", "local")  # one start less, where one is there
    ended = run_script(text, folder=tmp_path, GIVEN=given)
    assert (ended.stdout, ended.code, ended.survivors) == ("fine\n", 0, []), ended


@pytest.mark.contract(37)
def test_handlers_of_signals_stay(options):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    ff.map(abs, range(4), **options)
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.parametrize("how", ["workers=1", "slots=1"])
def test_no_more_run_at_once_than_one_asks_for(cluster, tmp_path, how):
    options = {"engine": cluster.engine(), "workers": 1} if how == "workers=1" else {"engine": cluster.engine(slots=1)}

    def one_at_a_time(x):
        path = tmp_path / "busy"
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL)
        time.sleep(0.1)
        os.close(descriptor)
        os.unlink(path)
        return x

    assert ff.map(one_at_a_time, range(8), chunk=1, **options) == list(range(8))


def test_no_chunk_waits_behind_a_long_one_while_a_worker_idles(cluster, tmp_path):
    """Even where short chunks have taught the cluster to expect that of all of them, and a worker was busy with other work."""
    engine = cluster.engine()
    ff.map(abs, range(200), engine=engine, chunk=1)
    if cluster.kind == "dask":
        client = engine.connection.client
        busy = client.submit(time.sleep, 1.0, pure=False)

    def meet(x):
        """Whether the other one comes while this one waits."""
        (tmp_path / f"here-{x}").touch()
        deadline = time.monotonic() + 15
        while not (tmp_path / f"here-{1 - x}").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        return (tmp_path / f"here-{1 - x}").exists() and time.monotonic() < deadline

    assert ff.map(meet, range(2), engine=engine, chunk=1) == [True, True]
    if cluster.kind == "dask":
        busy.result()


@pytest.mark.contract(31)
def test_a_call_inside_the_stream_of_another_one_does_not_mix_with_it(cluster):
    def inner(x):
        return [value * 10 for value in ff.map(lambda y: y + 1, [x, x], engine=cluster.engine())]

    assert [inner(x) for x in ff.imap(lambda x: x, range(4), engine=cluster.engine(), chunk=1)] == [
        [10 * (x + 1)] * 2 for x in range(4)
    ]
