"""What the machine gives: affinity and cgroup limits in both layouts, read from files made here, and the real ones."""

import os
import signal

import pytest

import fourfold as ff
from fourfold.system import machine
from fourfold.system.machine import Cores, Memory, cgroup_cpu_quota, cores, memory


@pytest.fixture
def cgroups(tmp_path):
    """Makes a cgroup file system and a membership file; returns their paths."""

    def make(membership, files):
        root, member = tmp_path / "cgroup", tmp_path / "membership"
        root.mkdir(exist_ok=True)
        member.write_text(membership)
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return root, member

    return make


V2, V1 = "0::/user/job\n", "5:memory:/user/job\n3:cpu,cpuacct:/user/job\n0::/\n"


# ---- processor quotas ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [("200000 100000\n", 2), ("150000 100000\n", 2), ("50000 100000\n", 1), ("1000 100000\n", 1), ("320000 40000\n", 8)],
)
@pytest.mark.fault("F52")
def test_a_v2_quota_counts_whole_cores_rounded_up(cgroups, text, expected):
    found = cgroup_cpu_quota(*cgroups(V2, {"user/job/cpu.max": text}))
    assert found.n_cores == expected
    assert "cgroup CPU quota of" in found.source
    assert "user/job" in found.source


@pytest.mark.parametrize("text", ["max 100000\n", "", "nonsense\n", "100000 0\n"])
def test_no_quota_or_one_that_makes_no_sense_is_none(cgroups, text):
    assert cgroup_cpu_quota(*cgroups(V2, {"user/job/cpu.max": text})) is None


def test_the_tightest_quota_on_the_way_up_counts(cgroups):
    files = {"user/job/cpu.max": "max 100000", "user/cpu.max": "200000 100000", "cpu.max": "800000 100000"}
    assert cgroup_cpu_quota(*cgroups(V2, files)).n_cores == 2
    files["user/job/cpu.max"] = "100000 100000"
    assert cgroup_cpu_quota(*cgroups(V2, files)).n_cores == 1


def test_in_a_container_whose_path_is_the_hosts_the_root_counts(cgroups):
    root, member = cgroups("0::/docker/abc123\n", {"cpu.max": "300000 100000"})
    assert cgroup_cpu_quota(root, member) == Cores(3, f"cgroup CPU quota of 3 CPUs in {root}")


@pytest.mark.parametrize("folder", ["cpu", "cpu,cpuacct"])
def test_a_v1_quota_is_read(cgroups, folder):
    files = {f"{folder}/user/job/cpu.cfs_quota_us": "250000\n", f"{folder}/user/job/cpu.cfs_period_us": "100000\n"}
    assert cgroup_cpu_quota(*cgroups(V1, files)).n_cores == 3


@pytest.mark.parametrize("quota", ["-1", ""])
def test_a_v1_quota_of_none_is_none(cgroups, quota):
    files = {"cpu/user/job/cpu.cfs_quota_us": quota, "cpu/user/job/cpu.cfs_period_us": "100000"}
    assert cgroup_cpu_quota(*cgroups(V1, files)) is None


def test_a_v1_quota_without_a_period_has_the_kernels_default(cgroups):
    assert cgroup_cpu_quota(*cgroups(V1, {"cpu/user/job/cpu.cfs_quota_us": "400000"})).n_cores == 4


def test_both_layouts_side_by_side_give_the_tighter(cgroups):
    files = {"cpu/user/job/cpu.cfs_quota_us": "400000", "cpu/user/job/cpu.cfs_period_us": "100000", "cpu.max": "200000 100000"}
    assert cgroup_cpu_quota(*cgroups(V1, files)).n_cores == 2


@pytest.mark.parametrize("membership", ["", "5:memory:/x\n", "0::/../../outside\n", "3:cpu:/\n"])
def test_odd_memberships_are_survived(cgroups, membership):
    assert cgroup_cpu_quota(*cgroups(membership, {})) is None


def test_without_a_cgroup_file_system_there_is_no_quota(tmp_path):
    assert cgroup_cpu_quota(tmp_path / "nothing", tmp_path / "none") is None


# ---- cores ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.fault("F52")
def test_the_least_of_affinity_and_quota_counts(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    monkeypatch.setattr(machine, "cgroup_cpu_quota", lambda: Cores(4, "quota"))
    assert cores() == Cores(4, "quota")
    monkeypatch.setattr(machine, "cgroup_cpu_quota", lambda: Cores(8, "quota"))
    assert cores() == Cores(6, "CPU affinity mask (6 of 16 cores)")
    monkeypatch.setattr(machine, "cgroup_cpu_quota", lambda: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    assert cores() == Cores(16, "cores of the machine")


def test_a_machine_that_does_not_know_its_cores_has_one(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(machine, "cgroup_cpu_quota", lambda: None)
    assert cores().n_cores == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
@pytest.mark.fault("F52")
def test_a_real_affinity_mask_is_respected():
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert cores().n_cores == 1
        assert ff.map(abs, range(3), engine="threads").report.workers == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert 1 <= cores().n_cores <= len(allowed)


# ---- memory -----------------------------------------------------------------------------------------------------------------------


def test_the_real_memory_is_some_and_says_whose_it_is():
    found = memory()
    assert 1 << 26 < found.limit_bytes <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert found.source


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        (V2, {"user/job/memory.max": "1048576\n"}, 1 << 20),
        (V2, {"user/job/memory.max": "max\n", "user/memory.max": "2097152"}, 1 << 21),
        (V2, {"user/job/memory.max": "max\n"}, None),
        (V1, {"memory/user/job/memory.limit_in_bytes": "4194304"}, 1 << 22),
        (V1, {"memory/user/job/memory.limit_in_bytes": "9223372036854771712"}, None),
    ],
)
def test_the_tightest_memory_limit_counts_in_both_layouts(cgroups, monkeypatch, membership, files, expected):
    root, member = cgroups(membership, files)
    real = machine._cgroup_folders
    monkeypatch.setattr(machine, "_cgroup_folders", lambda _root, _membership, controller: real(root, member, controller))
    whole = Memory(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "memory of the machine")
    found = memory()
    if expected is None:
        assert found == whole
    else:
        assert found.limit_bytes == expected
        assert str(root) in found.source


# ---- deaths for want of memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        (V2, {"user/job/memory.events": "low 0\nhigh 7\nmax 2\noom 1\noom_kill 4\noom_group_kill 9\n"}, 4),
        (V2, {"user/job/memory.events": "oom_kill 4\n", "user/memory.events": "oom_kill 6\n"}, 4),
        (V2, {"memory.events": "oom_kill 0\n"}, 0),
        (V1, {"memory/user/job/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"}, 3),
        (V1, {"memory/user/job/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\n"}, None),
        (V2, {"user/job/memory.events": "oom_kill many\n"}, None),
        (V2, {}, None),
    ],
)
def test_the_kernels_kills_are_counted_in_both_layouts(cgroups, membership, files, expected):
    root, member = cgroups(membership, files)
    assert machine.oom_kills(str(root), str(member)) == expected


def test_without_a_cgroup_file_system_nobody_counts(tmp_path):
    assert machine.oom_kills(str(tmp_path / "none"), str(tmp_path / "none")) is None


# ---- who listens to a signal ---------------------------------------------------------------------------------------------------


def test_a_process_with_a_handler_catches_the_signal_and_others_do_not():
    assert not machine.catches(os.getpid(), signal.SIGUSR2)
    before = signal.signal(signal.SIGUSR2, lambda *_: None)
    try:
        assert machine.catches(os.getpid(), signal.SIGUSR2)
        assert not machine.catches(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_process_that_is_not_there_catches_nothing():
    assert not machine.catches(999_999_999, signal.SIGUSR1)


# ---- the rest -----------------------------------------------------------------------------------------------------------------------


def test_this_is_no_notebook():
    assert not machine.in_notebook()


def test_a_name_for_people():
    class Model:
        def __call__(self, item):
            return item

    assert machine.user_name_of(len) == "len"
    assert machine.user_name_of(Model) == "Model"
    assert machine.user_name_of(Model()).endswith("Model")
    assert machine.user_name_of(lambda: 0) == "<lambda>"


def test_threads_of_numerical_libraries_are_limited_for_a_while():
    import threadpoolctl

    def counts():
        return [library["num_threads"] for library in threadpoolctl.threadpool_info()]

    before = counts()
    with machine.limited_threads(1):
        assert set(counts()) <= {1}
    assert counts() == before


def test_limits_that_overlap_end_where_they_began():
    import numpy as np
    import threadpoolctl

    assert np.ones(2) @ np.ones(2) == 2  # its library is loaded

    def counts():
        return {library["num_threads"] for library in threadpoolctl.threadpool_info()}

    with threadpoolctl.threadpool_limits(limits=4):
        first, second = machine.limited_threads(2), machine.limited_threads(1)
        first.__enter__()
        second.__enter__()
        assert counts() == {1}
        first.__exit__(None, None, None)
        assert counts() == {1}
        second.__exit__(None, None, None)
        assert counts() == {4}


@pytest.mark.fault("F26")
def test_workers_limit_the_threads_of_numerical_libraries():
    def ask(item):
        import os

        return os.environ["OMP_NUM_THREADS"]

    assert set(ff.map(ask, range(4), engine="processes", workers=2, threads_per_worker=3)) == {"3"}
    expected = str(max(1, cores().n_cores // 2))
    if not any(name in os.environ for name in machine.THREAD_VARIABLES):
        assert set(ff.map(ask, range(4), engine="processes", workers=2)) == {expected}
