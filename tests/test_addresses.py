"""Secrets of addresses are in no message, and in no log."""

import importlib.util
import socket
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from running import run_script

import fourfold as ff
from fourfold.addresses import without_secrets
from fourfold.distribute import connection
from fourfold.distribute.connection import Connection, cannot_connect, check_that_somebody_listens, first_line
from fourfold.distribute.engines.on_ray.head import Head
from fourfold.engines import Dask, Ray, Spark
from fourfold.errors import EngineError, FourfoldError

SECRET = "hunter2-4711"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (f"sc://host;token={SECRET}", "sc://host;token=…"),
        (f"sc://host:443/;user_id=me;token={SECRET};use_ssl=true", "sc://host:443/;user_id=me;token=…;use_ssl=true"),
        (f"sc://host/;x-my-header={SECRET}", "sc://host/;x-my-header=…"),
        (f"tcp://me:{SECRET}@host:8786", "tcp://…@host:8786"),
        (f"ray://host:10001?key={SECRET}&more={SECRET}", "ray://host:10001?key=…&more=…"),
        (f"'sc://host/;token={SECRET}' and \"tcp://{SECRET}@host\"", "'sc://host/;token=…' and \"tcp://…@host\""),
        ("spark://one:7077,two:7077", "spark://one:7077,two:7077"),
        ("what is no address;keeps=all?of=it", "what is no address;keeps=all?of=it"),
        ("", ""),
    ],
)
def test_an_address_is_shown_without_its_secrets(address: str, shown: str) -> None:
    assert without_secrets(address) == shown


def test_a_secret_is_not_shown_alone_either_nor_as_its_library_decodes_it() -> None:
    address = "sc://host/;token=ab%2Fcd"
    assert without_secrets("tried ab/cd, then ab%2Fcd, in vain", address) == "tried …, then …, in vain"


def shown(error: BaseException) -> str:
    """All that Python prints of an error that nobody catches, and what a report may take of it."""
    return "".join(traceback.format_exception(error)) + repr(error)


def test_what_a_library_says_of_an_address_with_a_secret_is_no_cause() -> None:
    address = f"sc://host;token={SECRET}"
    try:
        raise ValueError(f"bad header {SECRET}")
    except ValueError as error:
        with pytest.raises(EngineError, match=r"^no Spark at sc://host;token=… ValueError: bad header …$") as caught:
            cannot_connect("Spark", address, error)
    assert SECRET not in shown(caught.value)


def test_what_a_library_says_of_any_other_address_is_the_cause() -> None:
    error = ValueError("bad header")
    with pytest.raises(EngineError, match=r"^no Ray at this machine: ValueError: bad header\. Do this$") as caught:
        cannot_connect("Ray", None, error, "Do this")
    assert caught.value.__cause__ is error


def test_an_error_of_a_cluster_is_told_without_secrets() -> None:
    assert first_line(OSError(f"cannot reach tcp://me:{SECRET}@host")) == "OSError: cannot reach tcp://…@host"


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port at which nobody listens, and nobody else will."""
    with socket.socket() as keeper:
        keeper.bind(("127.0.0.1", 0))
        yield keeper.getsockname()[1]


def test_an_address_at_which_nobody_listens_is_told_without_its_secrets(closed_port: int) -> None:
    address = f"sc://127.0.0.1:{closed_port}/;token={SECRET}"
    with pytest.raises(EngineError, match=rf"nobody listens at sc://127.0.0.1:{closed_port}/;token=…: ") as caught:
        check_that_somebody_listens(address)
    assert SECRET not in shown(caught.value)


def test_who_listens_and_does_not_greet_is_no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask itself would wait for the greeting for ever."""
    monkeypatch.setattr(connection, "REACH_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        check_that_somebody_listens(address)
        with pytest.raises(EngineError, match=rf"^nobody who greets listens at {address}: timed out"):
            check_that_somebody_listens(address, greets=True)


def test_who_greets_may_be_a_scheduler() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            with server.accept()[0] as guest:
                guest.sendall(b"hello")

        host = threading.Thread(target=greet)
        host.start()
        check_that_somebody_listens(f"tcp://127.0.0.1:{server.getsockname()[1]}", greets=True)
        host.join(10)


def test_certificates_that_dask_does_not_have_are_asked_for() -> None:
    pytest.importorskip("distributed")
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(EngineError, match=r"^tls://127.* asks for certificates, .*distributed\.comm\.tls in dask\.config"),
    ):
        Dask(f"tls://127.0.0.1:{server.getsockname()[1]}").open()


WRONG = """
    import logging, socket, sys
    from fourfold.engines import Dask, Ray, Spark
    from fourfold.errors import EngineError

    logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
    secret = sys.argv[1]
    with socket.socket() as closed, socket.create_server(("127.0.0.1", 0)) as listening:
        closed.bind(("127.0.0.1", 0))
        here, there = (f"127.0.0.1:{each.getsockname()[1]}" for each in (closed, listening))
        for kind, address in [
            (Spark, f"sc://{here}/;token={secret}"),
            (Ray, f"ray://{here}?token={secret}"),
            (Dask, f"tcp://me:{secret}@{here}"),
            (Spark, f"sc://{there}/;token={secret}=="),  # as many tokens end; Spark names them in its error
        ]:
            try:
                kind(address).open()
            except EngineError as error:
                logging.exception("refused %s", "127.0.0.1" in str(error))
"""


@pytest.mark.slow
def test_no_engine_shows_the_secret_of_an_address_that_is_wrong(tmp_path: Path) -> None:
    for package in ("pyspark", "ray", "distributed"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    ended = run_script(WRONG, SECRET, folder=tmp_path)
    assert ended.stdout.count("refused True") == 4, ended
    assert SECRET not in ended.stdout + ended.stderr


def test_an_option_that_is_wrong_is_told_without_its_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> str:
        with pytest.raises(FourfoldError) as caught:
            ff.map(abs, [1])
        return shown(caught.value)

    monkeypatch.setenv("FOURFOLD_ENGINE", f"scc://host;token={SECRET}")
    assert SECRET not in refused()
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    monkeypatch.setenv("FOURFOLD_ENGINE", f"sc://host;token={SECRET}")
    text = refused()
    assert "sc://host;token=…" in text
    assert SECRET not in text


# ---- clusters that ask nobody who he is


class Opened(Connection):
    """A connection that has found a cluster."""

    where = "the test cluster"

    def __init__(self, door: tuple[str, str] | None) -> None:
        super().__init__(())
        self._door = door

    def _connect(self) -> None:
        pass

    def _answers(self) -> bool:
        return True

    def _probe(self, orders: Any) -> dict[str, Any]:
        import sys

        from fourfold.version import VERSION

        return {"python": sys.version_info[:3], "executable": "", "fourfold": VERSION, "cloudpickle": "3"}

    def _open_door(self) -> tuple[str, str] | None:
        return self._door


def test_a_cluster_that_lets_everybody_in_is_warned_of_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_warned_of", set())
    for _ in range(2):
        one = Opened((f"tcp://me:{SECRET}@host:1", "Use certificates"))
        one.open()
        one.open()
    Opened(("tcp://other:1", "Use certificates")).open()
    Opened(None).open()
    says = "lets everybody in who can reach it: to run code there, and to send here what is unpickled here. Use certificates"
    assert [(record.name, record.levelname, record.getMessage()) for record in caplog.records] == [
        ("fourfold", "WARNING", f"the test cluster at tcp://…@host:1 {says}"),
        ("fourfold", "WARNING", f"the test cluster at tcp://other:1 {says}"),
    ]


def dask_at(address: str) -> Connection:
    there = Dask(address).connection
    there.client = SimpleNamespace(scheduler=SimpleNamespace(address=address))
    return there


def classic(**settings: str) -> Connection:
    there = Spark().connection
    conf = {name.replace("_", "."): value for name, value in settings.items()}
    there.spark = SimpleNamespace(sparkContext=SimpleNamespace(getConf=lambda: SimpleNamespace(get=conf.get)))
    return there


def connect(secure: bool) -> Connection:
    there = Spark("sc://host").connection
    there._is_remote = True
    there.spark = SimpleNamespace(client=SimpleNamespace(_builder=SimpleNamespace(secure=secure, endpoint="host:15002")))
    return there


@pytest.mark.parametrize(
    ("there", "place"),
    [
        (dask_at("tcp://host:8786"), "tcp://host:8786"),
        (dask_at("tls://host:8786"), None),
        (dask_at("inproc://host/1"), None),
        (classic(spark_master="spark://host:7077"), "spark://host:7077"),
        (classic(spark_master="yarn", spark_authenticate="false"), "yarn"),
        (classic(spark_master="yarn", spark_authenticate="true"), None),
        (classic(spark_master="local[2]"), None),
        (connect(secure=False), "host:15002"),
        (connect(secure=True), None),
    ],
)
def test_who_lets_everybody_in_is_known(there: Connection, place: str | None) -> None:
    door = there._open_door()
    assert (door and door[0]) == place


@pytest.mark.parametrize(
    ("mode", "tls", "place"),
    [("disabled", "", "host:6379"), ("disabled", "1", None), ("token", "", None), ("old", "", "host:6379")],
)
def test_a_ray_asks_by_tokens_or_by_certificates(
    mode: str, tls: str, place: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    raylet = SimpleNamespace(get_authentication_mode=lambda: mode, AuthenticationMode=SimpleNamespace(TOKEN="token"))
    fake = SimpleNamespace(_raylet=raylet if mode != "old" else SimpleNamespace())
    monkeypatch.setattr("fourfold.distribute.engines.on_ray.library.ray", lambda: fake)
    monkeypatch.setenv("RAY_USE_TLS", tls)
    there = Ray("host:6379").connection
    there.head = Head("host:6379", None)
    door = there._open_door()
    assert (door and door[0]) == place
