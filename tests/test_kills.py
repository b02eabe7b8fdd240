"""Fifty kills: SIGKILL of workers and of drivers at random moments while a dataset is written, and each row is there once."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from running import started
from tables import people, small_pieces, write_parquet

import fourfold as ff

__all__ = ["small_pieces"]

SCRIPT = """
    import json, os, random, signal, sys, time
    from pathlib import Path

    import psutil
    import fourfold as ff
    import fourfold.data.plan as plan
    import fourfold.data.sources.parquet as source
    import fourfold.data.writing  # drivers are forks of this process, and need not import it all

    plan.MIN_ROWS = source.MAX_ROWS = 10

    def fn(batch):
        with open("ran", "a") as file:
            file.write(f"{batch['id'][0].as_py()}\\n")
        return batch.append_column("y", batch["x"])

    def write(out):
        ff.scan("in.parquet").map_batches(fn, batch_format="arrow").write(out, run=f"run-{out}", engine="processes", workers=2, chunk=1)

    def driver(out):
        pid = os.fork()
        if pid == 0:
            try:
                write(out)
                os._exit(0)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            finally:
                os._exit(1)
        return pid

    def n_ran():
        return os.path.getsize("ran") // 4  # each has about so many characters

    def workers_of(pid):
        # Processes that it has forked itself, or its template; a worker is a child of the template.
        try:
            return [each.pid for each in psutil.Process(pid).children(recursive=True) if each.ppid() != pid]
        except psutil.Error:
            return []

    def disturbed(seed, n_kills):
        # Kill n_kills workers and drivers while one output is written: how many of each, and how often a driver had to start.
        dice, killed, pid = random.Random(seed), {"driver": 0, "worker": 0}, driver("out")
        ends = []
        while sum(killed.values()) < n_kills and not ends:
            goal, deadline = n_ran() + dice.randrange(2, 6), time.monotonic() + 60
            while n_ran() < goal and not ends:
                assert time.monotonic() < deadline, "nothing gets done"
                done, status = os.waitpid(pid, os.WNOHANG)
                ends += [status] if done else []
                time.sleep(0.002)
            time.sleep(dice.random() * 0.02)  # a kill comes into whatever is next: a write, a commit, a start
            if ends:
                break
            if dice.random() < 0.4:
                os.kill(pid, signal.SIGKILL)
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) in (0, -signal.SIGKILL)
                killed["driver"] += 1
                pid = driver("out")
            elif workers := workers_of(pid):
                try:
                    os.kill(dice.choice(sorted(workers)), signal.SIGKILL)
                except ProcessLookupError:
                    continue
                killed["worker"] += 1
        ends = ends or [os.waitpid(pid, 0)[1]]
        return {**killed, "ends": ends}

    if __name__ == "__main__":
        Path("ran").touch()
        print(json.dumps(disturbed(int(sys.argv[1]), int(sys.argv[2]))))
"""

N_ROWS = 4000


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_twenty_five_kills_at_random_moments_change_no_row_and_no_byte(
    tmp_path: Path, seed: int, small_pieces: Callable[[int, int], None]
) -> None:
    write_parquet(people(N_ROWS), tmp_path / "in.parquet", group_rows=10)
    with started(SCRIPT, str(seed), "25", folder=tmp_path) as script:
        ended = script.end(timeout=100)
    assert (ended.code, ended.survivors) == (0, []), ended.stderr
    killed = json.loads(ended.stdout)
    assert killed["ends"] == [0], ended.stderr
    assert killed["driver"] + killed["worker"] == 25, killed
    assert min(killed["driver"], killed["worker"]) >= 5
    assert pq.read_table(tmp_path / "out").drop_columns(["y"]).equals(people(N_ROWS)), "each row once, in order"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["in.parquet", "out", "ran", "run-out", "script.py"]
    small_pieces(10, 1 << 20)
    rows = ff.scan(tmp_path / "in.parquet").map_batches(
        lambda batch: batch.append_column("y", batch["x"]), batch_format="arrow"
    )
    rows.write(tmp_path / "quiet")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "quiet")
    n_ran = len((tmp_path / "ran").read_text().split())
    assert N_ROWS // 10 <= n_ran <= N_ROWS // 10 + 25 * 8, "only what was in flight at a kill runs again"


def files_of(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.glob("*.parquet")}
