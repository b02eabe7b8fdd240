"""What can happen to the folder of a run: killed drivers, full disks, damage, strangers. One clear error, or nothing lost."""

import contextlib
import hashlib
import itertools
import json
import os
import pickle
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import ways
from killer import is_killed_at
from recorded_items import recorded_items
from running import run_script, started

import fourfold as ff
from fourfold.errors import FourfoldError, JournalCorrupt, JournalError, RunInUse, UntrustedRun
from fourfold.execute.pickling import dump_by_name
from fourfold.runs import place, upkeep
from fourfold.runs.fingerprint import item_digest
from fourfold.runs.journal import Journal
from fourfold.runs.place import file_system_of
from fourfold.runs.seal import VALUES, load_key
from fourfold.runs.story import failures_of, story_of
from fourfold.runs.tables import Done
from fourfold.runs.values import ValueWriter
from fourfold.system import seams


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def square(item):
    return item * item


def record(run, n_items=40, **options):
    assert ff.map(square, range(n_items), run=run, **{"engine": "serial", "chunk": 5, **options}) == squares(n_items)


def squares(n_items):
    return [item * item for item in range(n_items)]


# ---- damage


def flip(path, at):
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("at", [0, 5, 30, 60, -1])
@pytest.mark.fault("F48")
def test_a_bit_that_flipped_in_a_value_is_named_and_refused(run, at):
    record(run)
    flip(run / "values-0001.part", at)
    with pytest.raises(
        JournalCorrupt, match=r"values-0001.part is damaged from byte \d+ to \d+, where the values of items \d+"
    ):
        record(run)


@pytest.mark.fault("F48")
def test_a_row_that_changed_is_refused_and_not_taken_for_another_item(run):
    record(run)
    database = sqlite3.connect(run / "journal.sqlite")
    database.execute("update done set digests = zeroblob(40) where first = 10")
    database.commit()
    database.close()
    with pytest.raises(JournalCorrupt, match="the row of items 10 to 14 has a wrong checksum"):
        record(run)


@pytest.mark.parametrize("at", [10, 101, 4096, 8192])
@pytest.mark.fault("F48")
def test_a_journal_with_damaged_pages_is_refused(run, at):
    record(run, 400)
    size = (run / "journal.sqlite").stat().st_size
    with open(run / "journal.sqlite", "r+b") as file:
        file.seek(min(at, size - 200))
        file.write(b"\x55" * 200)
    with pytest.raises((JournalCorrupt, JournalError), match=r"journal.sqlite|damaged|run"):
        record(run, 400)


@pytest.mark.fault("F48")
def test_a_file_of_values_that_is_gone_is_named(run):
    record(run)
    (run / "values-0001.part").unlink()
    with pytest.raises(JournalCorrupt, match=r"values-0001.part has 0 bytes and had \d+"):
        record(run)


@pytest.mark.fault("F48")
def test_values_that_never_reached_the_disk_are_computed_again(run, tmp_path):
    record(run)
    journal = Journal(run)
    journal.database.execute("update part set synced_bytes = 60")  # the machine lost its power after the first two chunks
    journal.close()
    path = run / "values-0001.part"
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - 30)
    results = ff.map(square, range(40), run=run, engine="serial")
    assert results == squares(40)
    assert 0 < results.report.n_recorded < 40


@pytest.mark.fault("F48")
def test_zeros_at_the_end_of_a_file_after_a_loss_of_power_are_computed_again(run):
    record(run)
    journal = Journal(run)
    journal.database.execute("update part set synced_bytes = 60")
    journal.close()
    path = run / "values-0001.part"
    data = path.read_bytes()
    path.write_bytes(data[:100] + bytes(len(data) - 100))
    results = ff.map(square, range(40), run=run, engine="serial")
    assert results == squares(40)
    assert 0 < results.report.n_recorded < 40


def test_a_journal_of_another_version_is_refused(run):
    record(run)
    database = sqlite3.connect(run / "journal.sqlite")
    database.execute("pragma user_version = 99")
    database.close()
    with pytest.raises(JournalError, match="another version of fourfold"):
        record(run)


@pytest.mark.fault("F48")
def test_a_folder_that_is_removed_while_it_is_written_is_one_error(run):
    def fn(item):
        if item == 20:
            shutil.rmtree(run)
        return item

    with pytest.raises(JournalError, match="cannot be written"):
        ff.map(fn, range(4000), run=run, engine="serial", chunk=1)


# ---- no room


FULL = """
    import resource, sys
    import fourfold as ff
    from fourfold.errors import FourfoldError

    limit = int(sys.argv[2])
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        results = ff.map(lambda item: bytes(20_000), range(100), run="run", engine=sys.argv[1], chunk=1, workers=2)
        print(len(results), results.report.n_recorded)
    except FourfoldError as error:
        print(type(error).__name__, error)
"""


@pytest.mark.parametrize("engine", ["serial", "processes"])
@pytest.mark.fault("F48")
def test_a_file_that_may_not_grow_is_one_error_and_what_fits_is_kept(tmp_path, engine):
    ended = run_script(FULL, engine, "300000", folder=tmp_path)
    assert (ended.code, ended.stderr, ended.survivors) == (0, "", [])
    assert ended.stdout.startswith("JournalError the run")
    assert "What was recorded before is safe" in ended.stdout
    ended = run_script(FULL, engine, "0", folder=tmp_path)
    n_items, n_recorded = map(int, ended.stdout.split())
    assert (ended.code, n_items) == (0, 100)
    assert n_recorded >= 5


@pytest.mark.fault("F48")
def test_a_folder_that_cannot_be_made_is_one_error(monkeypatch):
    with pytest.raises(JournalError, match="cannot be made"):
        ff.map(square, [1], run="/proc/self/run")


SEAMS = [
    "journal.mkdir",
    "journal.lock",
    "journal.open",
    "journal.create",
    "journal.program",
    "journal.write",
    "journal.tail",
    "journal.commit",
    "journal.sync",
]

NO_LINKS = "key.link:*:EPERM,"


@pytest.mark.parametrize("action", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("once", ["", "+"], ids=["once", "from then on"])
@pytest.mark.parametrize("seam", SEAMS)
@pytest.mark.fault("F53", faults=20)
def test_each_call_that_can_fail_fails_once(tmp_path, seam, once, action):
    """The N-th call fails, N = 1, 2, 3 …, until none is left to fail: each time the run ends well or in one error."""
    for number in itertools.count(1):
        run = tmp_path / str(number)
        seams.set_faults(f"{seam}:{number}{once}:{action}")
        try:
            with contextlib.suppress(JournalError):
                record(run, 60, chunk=1)
            was_hit = seams.calls[seam] >= number
        finally:
            seams.set_faults("")
        record(run, 60)
        if not was_hit:
            break
    assert number > 1, "the seam is not there"


@pytest.mark.parametrize("action", ["ENOSPC", "EIO", "KILL"])
@pytest.mark.parametrize(
    ("no_links", "seam"),
    [("", "key.make"), ("", "key.read"), (NO_LINKS, "key.make"), (NO_LINKS, "key.read"), (NO_LINKS, "key.rename")],
)
@pytest.mark.fault("F53")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_each_call_that_makes_the_key_fails_once(tmp_path, monkeypatch, no_links, seam, action):
    """The key is there whole, or not at all: what is recorded next is sealed with one key only."""
    beside = {".key-lock"} if no_links else set()
    for number in itertools.count(1):
        state, run = tmp_path / f"state-{number}", tmp_path / str(number)
        monkeypatch.setenv("XDG_STATE_HOME", str(state))
        if action == "KILL":
            was_hit = is_killed_at(f"{no_links}{seam}:{number}:KILL", lambda run=run: record(run))
        else:
            seams.set_faults(f"{no_links}{seam}:{number}:{action}")
            try:
                with contextlib.suppress(JournalError):
                    record(run)
                was_hit = seams.calls[seam] >= number
            finally:
                seams.set_faults("")
        record(run)
        record(run, 50)
        left = {path.name for path in (state / "fourfold").iterdir()}
        assert {name for name in left if not name.startswith(".key-")} == {"key"}
        assert action == "KILL" or left - beside == {"key"}
        if not was_hit:
            break
    assert number > 1, "the seam is not there"


# ---- killed drivers


KILLED = """
    import os, sys, time
    import fourfold as ff

    def fn(item):
        end = os.open("ran.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(end, b"%d\\n" % item)
        os.close(end)
        time.sleep(0.002)
        return item * 0.1

    if __name__ == "__main__":
        values = ff.map(fn, range(int(sys.argv[1])), run="run", engine=sys.argv[2], workers=2)
        print(repr(values))
"""


def ran(folder):
    path = folder / "ran.txt"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


@pytest.mark.contract(21, "serial", "processes")
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("engine", ["serial", "processes"])
@pytest.mark.fault("F42", faults=25)
def test_a_driver_that_is_killed_at_any_moment_loses_nothing_that_was_recorded(tmp_path, engine):
    """25 moments on each engine, 50 in all: after each the recorded items are a growing set, and none of them runs again."""
    moments = random.Random(7)
    n_items, n_kills, before = 1000, 0, set()
    while n_kills < 25:
        n_ran = len(ran(tmp_path))
        with started(KILLED, str(n_items), engine, folder=tmp_path) as script:
            with contextlib.suppress(subprocess.TimeoutExpired):
                script.process.wait(moments.uniform(0.1, 0.7))
            n_kills += script.process.poll() is None
            script.process.kill()
            ended = script.end()
        assert ended.survivors == []
        assert not before & set(ran(tmp_path)[n_ran:]), "a recorded item ran again"
        now = recorded_items(tmp_path / "run")
        assert before <= now
        before = now
        if ended.code == 0:  # it was faster than the kill: begin a new run
            assert ended.stdout.strip() == repr([item * 0.1 for item in range(n_items)])
            shutil.rmtree(tmp_path / "run")
            before = set()
    ended = run_script(KILLED, str(n_items), engine, folder=tmp_path)
    assert (ended.code, ended.stderr, ended.survivors) == (0, "", [])
    assert ended.stdout.strip() == repr([item * 0.1 for item in range(n_items)])


HALF = """
    import os, sys
    import fourfold as ff
    import fourfold.runs.rhythm as rhythm

    rhythm.TAIL_SHARE = 1e9  # as if the disk took no time: a busy machine must not decide

    def fn(item):
        end = os.open("ran.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(end, b"%d\\n" % item)
        os.close(end)
        return item

    def items():
        for item in range(4000):
            if sys.argv[2:] == ["kill"] and item > 2000 and len(open("ran.txt").read().split()) > 1500:
                os.kill(os.getpid(), 9)
            yield item

    if __name__ == "__main__":
        ff.map(fn, items(), run="run", engine=sys.argv[1], workers=2, chunk=20)
"""


@pytest.mark.parametrize("engine", ["serial", "processes"])
@pytest.mark.fault("F42", faults=2)  # and a second script, without one
def test_a_driver_that_is_killed_loses_of_short_items_only_what_was_in_flight(tmp_path, engine):
    assert run_script(HALF, engine, "kill", folder=tmp_path).code == -signal.SIGKILL
    n_before = len(ran(tmp_path))
    assert run_script(HALF, engine, folder=tmp_path).code == 0
    n_after = len(ran(tmp_path)) - n_before
    assert n_after <= 4000 - n_before + 2 * 2 * 20  # two chunks beside each of two workers


@pytest.mark.parametrize("engine", ["serial", "threads", "processes"])
@pytest.mark.fault("F42")
def test_a_driver_that_is_killed_with_a_result_in_its_hands_has_recorded_it(tmp_path, run, engine):
    text = """
        import os, sys, time
        import fourfold as ff
        import fourfold.runs.rhythm as rhythm

        rhythm.TAIL_SHARE = 1e-9  # as if the disk were slow

        def fn(item):
            time.sleep(0.02)
            return item

        for value in ff.imap(fn, range(50), run="run", engine=sys.argv[1], workers=1, chunk=1):
            if value == 3:
                os.kill(os.getpid(), 9)
    """
    assert run_script(text, engine, folder=tmp_path).code == -signal.SIGKILL
    journal = Journal(run, load_key())
    assert journal.count("done") >= 4
    journal.close()


@pytest.mark.parametrize("engine", ["threads", "processes"])
@pytest.mark.fault("F42", faults=2)  # Ctrl-C, and a kill in its grace
def test_what_ends_within_the_grace_outlives_a_kill_after_it(tmp_path, run, engine):
    """Supervisors send SIGKILL soon after SIGINT or SIGTERM."""
    text = """
        import os, pathlib, signal, sys, threading, time
        import fourfold as ff
        from fourfold.runs.story import story_of

        def wait(is_over, patience_s=30):
            deadline = time.monotonic() + patience_s
            while not is_over() and time.monotonic() < deadline:
                time.sleep(0.01)

        def fn(item):
            open(f"runs-{item}", "w").close()
            wait(lambda: item and os.path.exists("interrupted"))
            return item

        def interrupt_and_kill():
            wait(lambda: os.path.exists("runs-0") and os.path.exists("runs-1"))
            os.kill(os.getpid(), signal.SIGINT)
            open("interrupted", "w").close()
            wait(lambda: story_of(pathlib.Path("run")).n_done, 1.5)  # the grace is longer
            os.kill(os.getpid(), signal.SIGKILL)

        if __name__ == "__main__":
            threading.Thread(target=interrupt_and_kill).start()
            ff.map(fn, range(2), run="run", engine=sys.argv[1], workers=2, chunk=1)
    """
    assert run_script(text, engine, folder=tmp_path).code == -signal.SIGKILL
    assert story_of(run).n_done == 1


@pytest.mark.fault("F48")
def test_a_stream_that_is_closed_on_a_full_disk_says_so(run):
    stream = ff.imap(square, range(1000), run=run, engine="serial", chunk=1)
    values = [next(stream) for _ in range(5)]
    seams.set_faults(",".join(f"journal.{seam}:*:ENOSPC" for seam in ("sync", "write", "commit", "tail")))
    try:
        with pytest.raises(JournalError, match="cannot be written"):
            stream.close()
    finally:
        seams.set_faults("")
    assert values == squares(5)
    record(run)


@pytest.mark.fault("F48")
def test_a_killed_run_that_is_opened_on_a_full_disk_is_not_damaged(run, tail):
    seams.set_faults("journal.commit:1:ENOSPC")
    try:
        with pytest.raises(JournalError, match="cannot be opened"):
            record(run)
    finally:
        seams.set_faults("")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "_commit_rows", no_room)
        with pytest.raises(JournalError, match="disk is full"):
            record(run)
    record(run)


def no_room(journal):
    """What SQLite says of a full disk."""
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    raise error


def test_a_writer_goes_on_after_an_error_that_somebody_keeps(tmp_path, monkeypatch):
    writer, errors = ValueWriter(tmp_path, 1), []

    def no_room(*args):
        raise OSError(28, "No space left on device")

    writer.write(dump_by_name([1]), hashlib.blake2b())
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", no_room)
        with pytest.raises(OSError, match="No space") as caught:
            writer.flush()
        errors.append(caught.value)
    where = writer.write(dump_by_name([2]), hashlib.blake2b())
    writer.flush()
    writer.close()
    assert (tmp_path / "values-0001.part").stat().st_size == where.offset + where.length_bytes


def test_one_line_that_waited_for_a_core_does_not_put_off_the_next_and_a_slow_disk_does(run):
    record(run, 20)
    journal = Journal(run, load_key())
    lengths = []
    for took_s in [(0.0, 100.0), (100.0, 0.0), (100.0, 100.0)]:
        journal._rhythm._lines_took_s = took_s
        journal.tell(seen=str(took_s))
        journal.beat(must_keep=False)
        lengths.append(len(journal._rows) - journal._n_in_tail)
    journal.close(last_words=False)
    assert lengths == [0, 0, 1], "lines that wait, after each"


@pytest.fixture
def tail(run, monkeypatch):
    """The tail of a run whose driver died with the second half of its 40 items in there only."""
    monkeypatch.setattr("fourfold.runs.rhythm.TAIL_SHARE", 1e9)
    record(run, 20)
    journal = Journal(run, load_key())
    for first in range(20, 40, 5):
        value = journal.keep(dump_by_name(squares(40)[first : first + 5]), VALUES)
        digests = b"".join(item_digest(item) for item in range(first, first + 5))
        journal.add(Done(first, 5, value, digests))
        journal.beat()
    journal.close(last_words=False)
    return run / "journal.tail"


@pytest.mark.fault("F42")
def test_the_story_of_a_killed_run_has_what_is_in_the_tail_and_changes_nothing(run, tail):
    def files():
        found = {path.name: path.read_bytes() for path in run.iterdir() if path.suffix != ".sqlite-shm"}
        return {name: data for name, data in found.items() if data}  # SQLite makes an empty file beside what it reads

    before = files()
    assert story_of(run).n_done == 40
    assert files() == before


@pytest.mark.fault("F42")
def test_what_is_in_the_tail_does_not_run_again(run, tail):
    results = ff.map(square, range(40), run=run, engine="serial")
    assert (results, results.report.n_recorded) == (squares(40), 40)
    assert not tail.exists()


@pytest.mark.fault("F48")
def test_a_torn_line_of_the_tail_runs_again_and_those_before_it_do_not(run, tail):
    tail.write_bytes(tail.read_bytes()[:-10])
    results = ff.map(square, range(40), run=run, engine="serial")
    assert (results, results.report.n_recorded) == (squares(40), 35)


@pytest.mark.fault("F48")
def test_a_line_of_the_tail_that_is_committed_already_is_not_read_again(run, tail):
    old = tail.read_bytes()
    assert len(recorded_items(run)) == 40
    Journal(run).close()
    journal = Journal(run)
    journal.database.execute("delete from done where first >= 20")  # what old lines would bring back
    journal.close()
    os.close(place.create_private(tail))
    tail.write_bytes(old)
    assert ff.map(square, range(40), run=run, engine="serial").report.n_recorded == 20


@pytest.mark.parametrize(
    "rows", [[["attach database '/tmp/theirs' as theirs", []]], [["done", []]], [["done"]], {"hex": "zz"}, 7]
)
@pytest.mark.fault("F48")
def test_a_tail_that_nobody_wrote_like_that_is_refused(run, tail, rows):
    n_commits = json.loads(tail.read_bytes().split(b"\n")[0][9:])[0]
    line = json.dumps([n_commits, rows]).encode()
    tail.write_bytes(b"%08x %s\n" % (zlib.crc32(line), line))
    with pytest.raises(JournalCorrupt, match="is damaged"):
        ff.map(square, range(40), run=run, engine="serial")


@pytest.mark.fault("F42")
def test_a_driver_that_is_killed_before_the_tables_are_made_leaves_a_run_that_can_begin(run):
    place.prepare(str(run))
    os.close(place.create_private(run / "journal.sqlite"))
    assert (story_of(run).state, story_of(run).n_done, failures_of(run)) == ("died", 0, [])
    record(run)


@pytest.mark.fault("F42")
def test_a_driver_that_is_killed_lets_go_of_the_run(tmp_path):
    text = """
        import fourfold as ff, os

        for value in ff.imap(abs, range(10), run="run", chunk=1):
            if value == 5:
                os.kill(os.getpid(), 9)
    """
    assert run_script(text, folder=tmp_path).code == -signal.SIGKILL
    assert ff.map(abs, range(10), run=tmp_path / "run") == list(range(10))


@pytest.mark.fault("F48")
def test_a_second_driver_is_told_who_holds_the_run(tmp_path):
    text = """
        import fourfold as ff, os, sys, time

        for value in ff.imap(abs, range(10), run="run"):
            print(os.getpid(), flush=True)
            sys.stdin.read()
    """
    with started(text, folder=tmp_path) as script:
        pid = script.read_line()
        with pytest.raises(RunInUse, match=f"process {pid} on "):
            ff.map(abs, range(10), run=tmp_path / "run")


# ---- who may read it


@pytest.fixture
def open_umask():
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_umask")
def test_nobody_else_can_read_a_run_whatever_the_umask(run):
    run.mkdir()  # the user made it, open to all
    (run.parent / "other").mkdir()
    for folder in (run, run.parent / "new" / "deep"):
        stream = ff.imap(square, range(40), run=folder, chunk=1)
        assert next(stream) == 0
        ff.map(abs, [-1], run=run.parent / "other")
        found = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
        assert folder.stat().st_mode & 0o777 == 0o700
        assert set(found.values()) == {0o600}, found
        assert "journal.sqlite-wal" in found
        stream.close()


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def with_a_bomb(run, tmp_path):
    """A run whose function and whose values leave a mark when they are unpickled."""
    with pytest.raises(ValueError, match="invalid literal"):
        ff.map(int, ["1", "x"], run=run, engine="serial", chunk=1)
    (run / "program.pickle").write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("which", ["run", "run/journal.sqlite", "run/program.pickle", "run/values-0001.part"])
def test_a_run_of_somebody_else_is_refused_before_anything_is_unpickled(run, tmp_path, which):
    with_a_bomb(run, tmp_path)
    os.chown(tmp_path / which, 12345, 12345)
    with pytest.raises(UntrustedRun, match="belongs to user 12345"):
        ff.map(int, ["1", "x"], run=run)
    assert replayed(run).returncode == 1
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("which", ["run", "run/journal.sqlite", "run/program.pickle"])
def test_a_run_that_others_may_write_to_is_refused_before_anything_is_unpickled(run, tmp_path, which):
    with_a_bomb(run, tmp_path)
    os.chmod(tmp_path / which, 0o777 if which == "run" else 0o620)
    with pytest.raises(UntrustedRun, match=r"others may write to .*chmod"):
        ff.map(int, ["1", "x"], run=run)
    assert "others may write" in replayed(run).stderr
    assert not (tmp_path / "mark").exists()


def test_the_bomb_would_go_off(run, tmp_path):
    with_a_bomb(run, tmp_path)
    upkeep.trust(run)
    replayed(run)
    assert (tmp_path / "mark").exists()


def replayed(run):
    command = [sys.executable, "-m", "fourfold", "replay", str(run), "--item", "1"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.fault("F48")
def test_links_that_somebody_planted_are_not_followed(run, tmp_path):
    record(run)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (run / "values-0002.part").symlink_to(victim)
    with pytest.raises(UntrustedRun, match="is a link"):
        record(run, 50)
    (run / "values-0002.part").unlink()
    (run / "lock").unlink()
    (run / "lock").symlink_to(victim)
    with pytest.raises((UntrustedRun, JournalError)):
        record(run, 50)
    assert victim.read_text() == "precious"


# ---- where it lies


def test_the_file_system_of_a_folder_is_found(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "proc /proc proc rw 0 0\n/dev/sda1 / ext4 rw 0 0\nserver:/x /data nfs4 rw 0 0\nserver:/y /data/with\\040space cifs rw 0 0\n"
    )
    for folder, kind in {"/home/me": "ext4", "/data/runs": "nfs4", "/database": "ext4", "/data/with space/r": "cifs"}.items():
        assert file_system_of(Path(folder), str(mounts)) == kind
    assert file_system_of(tmp_path, str(tmp_path / "none")) == ""


def test_a_run_between_machines_has_no_write_ahead_log(run, monkeypatch):
    monkeypatch.setattr("fourfold.runs.tables.file_system_of", lambda folder: "nfs4")
    stream = ff.imap(square, range(40), run=run, chunk=1)
    assert list(itertools.islice(stream, 20)) == squares(20)
    assert not (run / "journal.sqlite-wal").exists()
    stream.close()
    record(run)
    assert "nfs4" in place.WITHOUT_SHARED_MEMORY


def test_a_run_may_be_named_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stream = ff.imap(square, range(40), run="run", engine="serial", chunk=1)
    next(stream)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert list(stream) == squares(40)[1:]
    assert not list((tmp_path / "elsewhere").iterdir())


# ---- the journal alone


@pytest.mark.fault("F48")
def test_a_commit_that_was_interrupted_is_made_again(run):
    place.prepare(str(run))
    journal = Journal(run, load_key())
    from fourfold.execute.pickling import dump

    value = journal.keep(dump([1, 2]), VALUES)
    journal.add(Done(0, 2, value, bytes(16)))
    seams.set_faults("journal.commit:1:EINTR")
    try:
        with pytest.raises(JournalError):
            journal.commit()
    finally:
        seams.set_faults("")
    journal.close()
    again = Journal(run)
    assert again.count("done") == 2
    again.close()


def test_every_error_is_one_of_ours():
    assert issubclass(JournalError, FourfoldError)
    assert issubclass(JournalError, OSError)
    assert ways.NAMES
