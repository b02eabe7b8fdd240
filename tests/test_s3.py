"""Datasets in S3, as a server in a process of its own speaks it; drivers and workers that write there are killed.

Each driver is a script: s3fs keeps a thread and connections for as long as its process lives.
"""

import json
import random
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from running import Ended, run_script, started, until
from tables import people, write_parquet

pytestmark = pytest.mark.slow

SERVE = """
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True)
print(server.server_port, flush=True)
server.serve_forever()
"""

SCRIPT = """
    import sys
    import fourfold as ff
    import fourfold.data.plan as plan
    import fourfold.data.sources.parquet as source

    plan.MIN_ROWS = source.MAX_ROWS = 100
    storage = {"key": "me", "secret": "hunter2", "endpoint_url": sys.argv[1]}

    def fn(batch):
        with open("ran", "a") as file:
            file.write(f"{batch['id'][0].as_py()}\\n")
        return batch.append_column("y", batch["x"])

    if __name__ == "__main__":
        options = dict(run="run", engine="processes", workers=2, chunk=1)
        written = ff.scan("in.parquet").map_batches(fn, batch_format="arrow").write("s3://bucket/out", storage_options=storage, **options)
        found = ff.scan("s3://bucket/out", storage_options=storage)
        ids = found.to_arrow()["id"].to_pylist()
        print(written.n_rows, ids == list(range(1000)), written.report.n_workers_lost)
"""

N_PIECES = 10


SIGNED = {
    "Authorization": "AWS4-HMAC-SHA256 Credential=me/20260101/us-east-1/s3/aws4_request",
    "Content-Type": "application/octet-stream",
}
"""What moto wants of a request, of which it checks no more."""


class Bucket:
    """A bucket of the server, looked at without any library of stores."""

    def __init__(self, url: str) -> None:
        self.url = url

    def request(self, path: str, method: str = "GET", data: bytes | None = None) -> bytes:
        request = urllib.request.Request(f"{self.url}/bucket{path}", data, method=method, headers=SIGNED)
        with urllib.request.urlopen(request) as answer:
            found: bytes = answer.read()
        return found

    def names(self) -> list[str]:
        return sorted(unquote(name) for name in re.findall("<Key>(.*?)</Key>", self.request("?list-type=2").decode()))

    def parts(self) -> list[str]:
        return [name for name in self.names() if "/part-" in name]

    def manifest(self) -> Any:
        return json.loads(self.request("/out/_fourfold.json"))

    def table(self) -> pa.Table:
        names = [each["path"] for each in self.manifest()["files"]]
        return pa.concat_tables(pq.read_table(pa.BufferReader(self.request(f"/out/{quote(name)}"))) for name in names)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    process = subprocess.Popen([sys.executable, "-c", SERVE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def bucket(server: str, tmp_path: Path) -> Bucket:
    """A new bucket, and what is to be written."""
    urllib.request.urlopen(urllib.request.Request(f"{server}/moto-api/reset", method="POST")).close()
    found = Bucket(server)
    found.request("", "PUT")
    write_parquet(people(1000), tmp_path / "in.parquet")
    return found


def call(bucket: Bucket, folder: Path, **env: str) -> Ended:
    return run_script(SCRIPT, bucket.url, folder=folder, **env)


def check_output(bucket: Bucket) -> None:
    """Each row once, in order, and nothing that lost."""
    table = bucket.table()
    assert table.select(["id", "x", "word"]).equals(people(1000))
    assert table["y"].equals(people(1000)["x"])
    assert bucket.parts() == [f"out/{each['path']}" for each in bucket.manifest()["files"]]
    assert bucket.names() == ["out/_fourfold.json", *bucket.parts()]


def test_workers_that_are_killed_behind_each_fourth_put_write_each_row_once(bucket: Bucket, tmp_path: Path) -> None:
    ended = call(bucket, tmp_path, FOURFOLD_FAULT="part.there:4:KILL")
    assert (ended.code, ended.survivors) == (0, []), ended.stderr
    n_rows, is_whole, n_lost = ended.stdout.split()
    assert (n_rows, is_whole) == ("1000", "True")
    assert int(n_lost) >= 2
    assert len((tmp_path / "ran").read_text().split()) >= N_PIECES + 2, "what was put and not told of ran again"
    check_output(bucket)


def test_a_driver_that_is_killed_while_it_writes_into_s3_goes_on(bucket: Bucket, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    moment = random.Random(7).randrange(2, 8)
    with started(SCRIPT, bucket.url, folder=tmp_path) as script:
        until(lambda: ran.exists() and len(ran.read_text().split()) >= moment, f"{moment} pieces have begun", timeout=60)
        script.process.send_signal(signal.SIGKILL)
        script.end()
    assert "out/_fourfold.json" not in bucket.names()
    assert call(bucket, tmp_path, FOURFOLD_FAULT="output.publish:1:KILL").code == -signal.SIGKILL
    assert len(bucket.parts()) >= N_PIECES
    assert "out/_fourfold.json" not in bucket.names()
    assert call(bucket, tmp_path, FOURFOLD_FAULT="output.published:1:KILL").code == -signal.SIGKILL
    assert bucket.table()["id"].to_pylist() == [*range(1000)], "from the manifest on it is there"
    n_before = len(ran.read_text().split())
    assert n_before <= N_PIECES + 4, "what was recorded did not run again"
    ended = call(bucket, tmp_path)
    assert (ended.code, ended.stdout.split()[:2], ended.survivors) == (0, ["1000", "True"], []), ended.stderr
    assert len(ran.read_text().split()) == n_before
    check_output(bucket)
    kept = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not [path for path in kept if b"hunter2" in path.read_bytes()], "no key is in the folder of the run"
    late = re.sub("-[0-9a-f]{16}[.]", f"-{'0' * 16}.", bucket.parts()[3])
    bucket.request(f"/{late}", "PUT")  # of a worker that was thought dead
    keys = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "word", "AWS_ENDPOINT_URL": bucket.url}
    cleaned = run_script("from fourfold.cli import main; main()", "clean", "s3://bucket", folder=tmp_path, **keys)
    assert (cleaned.code, cleaned.stdout) == (0, f"s3://bucket/{late}\n"), cleaned.stderr
    check_output(bucket)


def test_the_command_line_reads_and_writes_with_options_of_the_store(bucket: Bucket, tmp_path: Path) -> None:
    bucket.request("/in/a.parquet", "PUT", (tmp_path / "in.parquet").read_bytes())
    (tmp_path / "mine.py").write_text("def same(batch):\n    return batch\n")
    options = ["key=me", "secret=$SECRET_OF_MINE", f"endpoint_url={bucket.url}"]
    words = ["map", "mine:same", "s3://bucket/in", "-o", "s3://bucket/out", "--batch", "arrow", "--run", "run"]
    words += [word for each in options for word in ("--storage-option", each)]
    ended = run_script("from fourfold.cli import main; main()", *words, folder=tmp_path, SECRET_OF_MINE="hunter2")
    assert ended.code == 0, ended.stderr
    assert bucket.table().equals(people(1000))
    kept = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not [path for path in kept if b"hunter2" in path.read_bytes()]
