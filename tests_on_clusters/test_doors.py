"""What a cluster that is started here opens to others, what stays as it was in the driver, and what it is warned of."""

import json
import socket
from pathlib import Path

import psutil
import pytest
from clusters import Cluster
from running import Script, run_script, started

SCRIPT = """
    import os, sys
    import fourfold as ff

    if __name__ == "__main__":
        assert ff.map(abs, range(-8, 0), engine=sys.argv[1], workers=2) == list(range(8, 0, -1))
        print("up", flush=True)
        sys.stdin.readline()
"""


def bound(script: Script) -> set[tuple[str, str]]:
    """The sockets of a script, and of all that it has started, that others could reach: program and address of each."""
    found = set()
    for process in script._family():
        for each in process.net_connections("inet"):
            if each.status == psutil.CONN_LISTEN or (each.type == socket.SOCK_DGRAM and each.laddr and not each.raddr):
                found.add((process.name(), each.laddr.ip))
    return found


def test_a_cluster_that_is_started_here_listens_on_this_machine_only(cluster: Cluster, tmp_path: Path) -> None:
    if not cluster.starts_by_itself:
        pytest.skip('engine="spark" starts no Connect server')
    with started(SCRIPT, cluster.kind, folder=tmp_path) as script:
        assert script.read_line() == "up"
        found = bound(script)
        script.process.stdin.write("\n")
        assert script.end(survive_s=10).code == 0
    assert found, "it listens nowhere: the test does not see its sockets"
    assert {each for each in found if each[1] not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")} == set()


AS_IT_WAS = """
    import json, os, signal, sys
    import fourfold as ff

    def mine(number, frame):
        pass

    def state():
        handlers = [signal.getsignal(number) is mine for number in (signal.SIGTERM, signal.SIGINT)]
        return {**os.environ}, handlers

    if __name__ == "__main__":
        signal.signal(signal.SIGTERM, mine)
        signal.signal(signal.SIGINT, mine)
        before = state()
        states = []
        for _ in range(2):
            ff.map(abs, range(4), engine=sys.argv[1])
            states.append(state())
        import fourfold.lanes
        fourfold.lanes._clusters[sys.argv[1]].shutdown()
        states.append(state())
        changes = [
            {name: after[0].get(name) for name in {**before[0], **after[0]} if before[0].get(name) != after[0].get(name)}
            for after in states
        ]
        print(json.dumps({"changes": changes, "handlers": [after[1] for after in states]}))
"""

THEIRS = {
    "ray": {"RAY_CLIENT_MODE"},
    "dask": set(),
    "spark": {"SPARK_AUTH_SOCKET_TIMEOUT", "SPARK_BUFFER_SIZE", "SPARK_CONNECT_MODE_ENABLED"},
}
"""What these packages put into the environment of any process that uses them, and read there later."""


def test_the_process_that_connects_keeps_its_environment_and_its_handlers(cluster: Cluster, tmp_path: Path) -> None:
    name = cluster.kind if cluster.starts_by_itself else cluster.address()
    ended = run_script(AS_IT_WAS, name, folder=tmp_path)
    assert ended.code == 0, ended
    told = json.loads(ended.stdout)
    assert [set(changes) - THEIRS[cluster.kind] for changes in told["changes"]] == [set(), set(), set()]
    assert told["handlers"] == [[True, True]] * 3


ASKS_NOBODY = """
    import logging, sys
    import fourfold as ff

    if __name__ == "__main__":
        logging.basicConfig(format="%(name)s %(levelname)s %(message)s", level=logging.WARNING)
        for _ in range(2):
            ff.map(abs, range(4), engine=sys.argv[1])
"""

SET = {"ray": "RAY_AUTH_MODE=token", "dask": "--tls-ca-file", "spark": "authenticate"}


@pytest.mark.parametrize("whose", ["its own", "given"])
def test_only_a_given_cluster_that_lets_everybody_in_is_warned_of(cluster: Cluster, whose: str, tmp_path: Path) -> None:
    is_given = whose == "given"
    if (is_given and not cluster.is_elsewhere()) or (not is_given and not cluster.starts_by_itself):
        pytest.skip("there is no such cluster of this kind")
    environment = cluster.environment() if is_given else {}
    ended = run_script(ASKS_NOBODY, cluster.address() if is_given else cluster.kind, folder=tmp_path, **environment)
    assert ended.code == 0, ended
    warnings = [line for line in ended.stderr.splitlines() if line.startswith("fourfold WARNING")]
    assert len(warnings) == is_given, ended.stderr
    if is_given:
        assert "lets everybody in who can reach it" in warnings[0]
        assert SET[cluster.kind] in warnings[0]


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
