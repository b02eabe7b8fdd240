"""What a cluster that is started here opens to others, what stays as it was in the driver, and what it is warned of."""

import contextlib
import http.client
import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from clusters import Cluster
from running import Script, run_script, started

SCRIPT = """
    import json, logging, os, signal, sys
    import fourfold as ff, fourfold.lanes

    def mine(number, frame):
        pass

    def state():
        handlers = [signal.getsignal(number) is mine for number in (signal.SIGTERM, signal.SIGINT)]
        return {**os.environ}, handlers

    if __name__ == "__main__":
        logging.basicConfig(format="%(name)s %(levelname)s %(message)s", level=logging.WARNING)
        signal.signal(signal.SIGTERM, mine)
        signal.signal(signal.SIGINT, mine)
        states = [state()]
        for _ in range(2):
            assert ff.map(abs, range(-8, 0), engine=sys.argv[1]) == list(range(8, 0, -1))
            states.append(state())
        print("up", flush=True)
        sys.stdin.readline()
        fourfold.lanes._clusters[sys.argv[1]].shutdown()
        states.append(state())
        before = states[0][0]
        names = {name for after, _ in states for name in after}
        changed = sorted(name for name in names if any(after.get(name) != before.get(name) for after, _ in states))
        print(json.dumps({"changed": changed, "handlers": [handlers for _, handlers in states]}))
"""

LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}

PAGES = ["/", "/status", "/metrics", "/health", "/json/counts.json", "/info/main/workers.html", "/api/version"]
"""Of Dask and Ray; a Spark that is started here has no port for pages at all."""

THEIRS = {
    "ray": {"RAY_CLIENT_MODE"},
    "dask": set(),
    "spark": {"SPARK_AUTH_SOCKET_TIMEOUT", "SPARK_BUFFER_SIZE", "SPARK_CONNECT_MODE_ENABLED"},
}
"""What these packages put into the environment of any process that uses them, and read there later."""

SET = {"ray": "RAY_AUTH_MODE=token", "dask": "--tls-ca-file", "spark": "authenticate"}
"""What a warning says to set."""


class Told(NamedTuple):
    """What a script saw that made two calls, and what could be seen of it meanwhile."""

    bound: set[tuple[str, str, int]]
    """Programs, and addresses and ports at which they can be reached, of the script and all that it has started."""
    pages: set[str]
    """Those of the usual web pages of a cluster that somebody there shows to who asks."""
    changed: set[str]
    handlers: list[list[bool]]
    warnings: list[str]


@pytest.fixture(scope="module")
def tell(shared_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Told]:
    """Runs the script once on a cluster that it starts, and once on the given one."""
    told: dict[bool, Told] = {}

    def tell(is_given: bool) -> Told:
        if is_given and not shared_cluster.is_elsewhere():
            pytest.skip("this cluster lives in the process of the tests")
        if not is_given and not shared_cluster.starts_by_itself:
            pytest.skip('engine="spark" starts no Connect server')
        if is_given not in told:
            told[is_given] = run(shared_cluster, is_given, tmp_path_factory.mktemp("doors"))
        return told[is_given]

    return tell


RAYLET = "(raylet)"
"""In lines that Ray prints here of what it does elsewhere, such as how many processes it starts on a busy machine."""


def run(cluster: Cluster, is_given: bool, folder: Path) -> Told:
    name = cluster.address() if is_given else cluster.kind
    with started(SCRIPT, name, folder=folder, **(cluster.environment() if is_given else {})) as script:
        while RAYLET in (line := script.read_line()):
            pass
        assert line == "up", script.end()
        found = bound(script)
        with ThreadPoolExecutor(8) as threads:  # many say nothing to who asks for a page
            pages = set().union(*threads.map(pages_at, [port for _, _, port in found]))
        script.process.stdin.write("\n")
        ended = script.end(survive_s=10)
    assert (ended.code, ended.survivors) == (0, []), ended
    said = json.loads("".join(line for line in ended.stdout.splitlines() if RAYLET not in line))
    warnings = [line for line in ended.stderr.splitlines() if line.startswith("fourfold WARNING")]
    return Told(found, pages, set(said["changed"]), said["handlers"], warnings)


def bound(script: Script) -> set[tuple[str, str, int]]:
    found = set()
    for process in script._family():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            for each in process.net_connections("inet"):
                if each.status == psutil.CONN_LISTEN or (each.type == socket.SOCK_DGRAM and each.laddr and not each.raddr):
                    found.add((process.name(), each.laddr.ip, each.laddr.port))
    return found


def pages_at(port: int) -> set[str]:
    found = set()
    for page in PAGES:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}{page}", timeout=2).close()
        except urllib.error.HTTPError:
            continue
        except (OSError, http.client.HTTPException):  # it does not speak HTTP
            break
        found.add(page)
    return found


def test_a_cluster_that_is_started_here_listens_on_this_machine_only(tell: Callable[[bool], Told]) -> None:
    found = tell(False).bound
    assert found, "it listens nowhere: the test does not see its sockets"
    assert {each for each in found if each[1] not in LOOPBACK} == set()


def test_a_cluster_that_is_started_here_shows_no_web_page(tell: Callable[[bool], Told]) -> None:
    assert tell(False).pages == set()


def test_a_spark_that_is_started_here_asks_for_its_secret(cluster: Cluster) -> None:
    if cluster.kind != "spark" or not cluster.address().startswith("local["):
        pytest.skip("others are started by the tests")
    # With a local master Spark makes the secret itself; with any other one it would not have started without one.
    assert cluster.engine().connection._given.sparkContext.getConf().get("spark.authenticate") == "true"


@pytest.mark.parametrize("whose", ["its own", "given"])
def test_the_process_that_connects_keeps_its_environment_and_its_handlers(
    cluster: Cluster, tell: Callable[[bool], Told], whose: str
) -> None:
    told = tell(whose == "given")
    assert told.changed - THEIRS[cluster.kind] == set()
    assert told.handlers == [[True, True]] * 4


def test_a_given_cluster_that_lets_everybody_in_is_warned_of_once(cluster: Cluster, tell: Callable[[bool], Told]) -> None:
    (warning,) = tell(True).warnings
    assert "lets everybody in who can reach it" in warning
    assert SET[cluster.kind] in warning


def test_a_cluster_that_is_started_here_is_not_warned_of(tell: Callable[[bool], Told]) -> None:
    assert tell(False).warnings == []


def test_a_ray_of_tokens_is_not_in_the_way_of_one_without(cluster: Cluster, tmp_path: Path) -> None:
    if cluster.kind != "ray" or not cluster.is_elsewhere():
        pytest.skip("only Ray has one state for a whole process")
    text = f"""
        import fourfold as ff, fourfold.engines, ray

        if __name__ == "__main__":
            with fourfold.engines.Ray("local", slots=1) as own:
                assert ff.map(abs, [-1], engine=own) == [1]
                assert ray._raylet.get_authentication_mode() == ray._raylet.AuthenticationMode.TOKEN
            assert ray._raylet.get_authentication_mode() == ray._raylet.AuthenticationMode.DISABLED
            with fourfold.engines.Ray({cluster.environment().get("RAY_ADDRESS")!r}) as given:
                assert ff.map(abs, [-1], engine=given) == [1]
            print("fine")
    """
    ended = run_script(text, folder=tmp_path)
    assert (ended.stdout, ended.code, ended.survivors) == ("fine\n", 0, []), ended


WITH_CERTIFICATES = """
    import logging
    import fourfold as ff, fourfold.engines
    from distributed import LocalCluster

    if __name__ == "__main__":
        logging.basicConfig(format="%(name)s %(levelname)s %(message)s", level=logging.WARNING)
        with fourfold.engines.Dask(slots=1) as own:
            assert ff.map(abs, [-1], engine=own) == [1]
            print(own.connection.client.scheduler.address.partition(":")[0])
        options = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "silence_logs": logging.CRITICAL}
        with LocalCluster(n_workers=1, threads_per_worker=1, **options) as given:
            assert ff.map(abs, [-1], engine=given.scheduler_address) == [1]
            print(given.scheduler_address.partition(":")[0])
        fourfold.lanes._clusters[given.scheduler_address].shutdown()
"""


def test_a_dask_with_certificates_is_used_with_them(cluster: Cluster, tmp_path: Path) -> None:
    if cluster.kind != "dask" or shutil.which("openssl") is None:
        pytest.skip("only Dask has certificates, and openssl makes them")
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"]
    subprocess.run([*request, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    settings = {"REQUIRE_ENCRYPTION": "true", "TLS__CA_FILE": certificate}
    for role in ("CLIENT", "SCHEDULER", "WORKER"):
        settings |= {f"TLS__{role}__KEY": key, f"TLS__{role}__CERT": certificate}
    environment = {f"DASK_DISTRIBUTED__COMM__{name}": value for name, value in settings.items()}
    ended = run_script(WITH_CERTIFICATES, folder=tmp_path, **environment)
    assert (ended.stdout, ended.code, ended.survivors) == ("tls\ntls\n", 0, []), ended
    assert "lets everybody in" not in ended.stderr
