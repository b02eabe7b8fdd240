"""What is shown of items, and which variables worker processes get: FOURFOLD_REDACT and FOURFOLD_ENV."""

import json
import os
import re
import subprocess
import sys
import threading
import time

import pytest
import ways

import fourfold as ff
from fourfold import shown
from fourfold.errors import InitFailed, OptionError
from fourfold.runs.story import failures_of
from fourfold.system import environment

way = ways.way

SECRET = "hunter2-4711"
TOLD = re.compile(r"<str of 12, digest [0-9a-f]{8}>")


def on_processes(fn, items, **options):
    return ff.map(fn, items, **{"engine": "processes", "workers": 2, **options})


@pytest.fixture
def hidden(monkeypatch):
    """Items are hidden."""
    monkeypatch.setenv("FOURFOLD_REDACT", "1")
    yield
    shown.obey("0")


def all_that_is_told(failure):
    """Every text of ours about a failure. The message of the exception itself is its own."""
    cause, texts = failure.error.__cause__, [repr(failure), failure.item, failure.message, failure.traceback]
    return "\n".join([*texts, *getattr(failure.error, "__notes__", []), str(cause or "")])


# ---- items


def test_a_short_item_is_shown_unless_it_is_to_be_hidden(way):
    failure = ff.map(int, [SECRET], on_error="collect", **way)[0]
    assert failure.item == repr(SECRET)
    assert failure.message == f"invalid literal for int() with base 10: {SECRET!r}"


@pytest.mark.usefixtures("hidden")
def test_a_hidden_item_is_told_by_type_length_and_digest(way):
    failure = ff.map(int, [SECRET], on_error="collect", **way)[0]
    assert SECRET not in all_that_is_told(failure)
    assert TOLD.fullmatch(failure.item)
    assert failure.message == f"invalid literal for int() with base 10: '{failure.item}'"
    assert f"item 0 of int: {failure.item} (attempt 1, " in failure.error.__notes__[0]
    assert str(failure.error) == f"invalid literal for int() with base 10: {SECRET!r}", "the exception is the user's"


class OfASecret:
    def __init__(self, word):
        self.word = word

    def __repr__(self):
        return f"OfASecret({self.word})"


class FailsWhoLoadsIt(OfASecret):
    def __reduce__(self):
        return int, (self.word,)


def dies(item):
    os._exit(7)


def hangs(item):
    time.sleep(1000)


def divides(item):
    return 1 / 0


def quotes(item):
    raise ValueError(f"no such account: {item}")


HIDES = {
    "raises": (divides, lambda: SECRET),
    "raises, of bytes": (divides, SECRET.encode),
    "raises, of an object": (divides, lambda: OfASecret(SECRET)),
    "quotes a row": (quotes, lambda: {"name": "x", "accounts": [1, (SECRET,)]}),
    "quotes what repr escapes": (quotes, lambda: [f"a\n{SECRET}"]),
    "dies": (dies, lambda: SECRET),
    "hangs": (hangs, lambda: SECRET),
    "cannot be pickled": (divides, lambda: {SECRET: threading.Lock()}),
    "cannot be loaded": (divides, lambda: FailsWhoLoadsIt(SECRET)),
}


@pytest.mark.usefixtures("hidden")
@pytest.mark.parametrize("name", HIDES)
def test_a_hidden_item_is_not_told_whatever_becomes_of_it(name):
    fn, make = HIDES[name]
    options = {"timeout": 0.2} if fn is hangs else {}
    (failure,) = on_processes(fn, [make()], on_error="collect", **options).failures
    found = all_that_is_told(failure)
    if name == "cannot be loaded":  # what it is loaded by is no text of ours, nor of the item
        found = found.replace(failure.message, "").replace(str(failure.error), "")
        found = "\n".join(line for line in found.splitlines() if not line.startswith("ValueError: "))
    assert SECRET not in found
    assert "digest" in failure.item


@pytest.mark.usefixtures("hidden")
def test_a_hidden_argument_of_a_class_is_not_told():
    class Model:
        def __init__(self, word):
            raise OSError("no")

        def __call__(self, item):
            return item

    with pytest.raises(InitFailed, match=r"Model\(<str of 12, digest \w+>\) raised OSError: no") as caught:
        on_processes(Model, [1], init=(SECRET,))
    assert SECRET not in str(caught.value.__cause__)
    with pytest.raises(OptionError, match="is for classes") as refused:
        ff.map(abs, [1], init=(SECRET,))
    assert SECRET not in str(refused.value)


def test_a_long_argument_of_a_class_is_shown_clipped():
    class Model:
        def __init__(self, word):
            raise OSError("no")

        def __call__(self, item):
            return item

    with pytest.raises(InitFailed) as caught:
        on_processes(Model, [1], init=("x" * 1000 + SECRET,))
    assert SECRET not in str(caught.value)


@pytest.mark.usefixtures("hidden")
def test_a_hidden_argument_that_is_no_tuple_is_not_told():
    with pytest.raises(OptionError, match=r"init=<str of 12, digest \w+> must be a tuple of arguments") as caught:
        ff.map(abs, [1], init=SECRET)
    assert SECRET not in str(caught.value)


@pytest.mark.usefixtures("hidden")
def test_equal_items_have_one_digest_and_others_another(way):
    words = [SECRET, "hunter2-4712", SECRET]
    first, second, third = (each.item for each in ff.map(int, words, on_error="collect", **way))
    assert first == third != second


@pytest.mark.usefixtures("hidden")
def test_a_digest_cannot_be_looked_up_since_its_key_is_new_in_each_program():
    code = "import fourfold as ff; print(ff.map(int, ['hunter2-4711'], on_error='collect')[0].item)"
    told = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(told) == 2
    assert all(TOLD.fullmatch(each.strip()) for each in told)


@pytest.mark.slow
@pytest.mark.usefixtures("hidden")
def test_what_the_command_writes_about_hidden_items_has_nothing_of_them(tmp_path):
    (tmp_path / "accounts.py").write_text("def find(row):\n    raise ValueError(f'no account {row[\"word\"]}')\n")
    (tmp_path / "in.csv").write_text(f"word\n{SECRET}\n")
    options = ["--run", "run", "--on-error", "collect"]
    done = fourfold(tmp_path, "map", "accounts:find", "in.csv", "-o", "out.jsonl", *options)
    assert done.returncode == 3, done.stderr
    listed = (tmp_path / "out.jsonl.failures.jsonl").read_text()
    assert "digest" in json.loads(listed)["item"]
    told = fourfold(tmp_path, "show", "run", "--json").stdout
    assert "no account <str of 12, digest" in told
    journal = [path for path in (tmp_path / "run").iterdir() if path.name.startswith("journal")]
    assert journal
    for text in (done.stdout, done.stderr, listed, told):
        assert SECRET not in text
    assert not [path.name for path in journal if SECRET.encode() in path.read_bytes()]
    (failed,) = failures_of(tmp_path / "run")
    assert failed.shown == json.loads(listed)["item"] == json.loads(told)["failures"][0]["shown"]


def test_items_of_a_run_that_was_recorded_with_them_can_be_hidden_when_it_is_shown(tmp_path, monkeypatch, capsys):
    from fourfold.cli.show import show_command

    ff.map(divides, [SECRET], on_error="skip", run=tmp_path / "run")
    show_command(str(tmp_path / "run"), as_json=True)
    assert SECRET in capsys.readouterr().out
    monkeypatch.setenv("FOURFOLD_REDACT", "1")
    show_command(str(tmp_path / "run"), as_json=True)
    shown.obey("0")
    assert json.loads(capsys.readouterr().out)["failures"][0]["shown"] == "<hidden>"


def fourfold(folder, *arguments):
    command = [sys.executable, "-m", "fourfold", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.usefixtures("hidden")
def test_a_call_inside_an_item_hides_its_items_too():
    def nested(word):
        return ff.map(int, [word], on_error="collect")[0].item

    (inner,) = on_processes(nested, [SECRET])
    (outer,) = on_processes(int, [SECRET], on_error="collect").failures
    assert inner == outer.item
    assert TOLD.fullmatch(inner)


@pytest.mark.parametrize("text", ["yes", "2", "true", " 1"])
def test_whether_to_hide_must_be_said_clearly(monkeypatch, text):
    monkeypatch.setenv("FOURFOLD_REDACT", text)
    with pytest.raises(OptionError, match=rf"the environment has FOURFOLD_REDACT='{text}'; it must be 1 .* or 0"):
        ff.map(abs, [1])


# ---- variables


@pytest.fixture
def variables(monkeypatch):
    for name in ("A_TOKEN", "HF_HOME", "HF_TOKEN", "FOURFOLD_KEY"):
        monkeypatch.setenv(name, SECRET)


NAMES = ["A_TOKEN", "FOURFOLD_KEY", "HF_HOME", "HF_TOKEN"]


def names_in_a_worker():
    (found,) = on_processes(lambda names: [name for name in names if name in os.environ], [NAMES])
    return found


@pytest.mark.usefixtures("variables")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, NAMES),
        ("", NAMES),
        ("HF_HOME", ["HF_HOME"]),
        ("HF_*", ["HF_HOME", "HF_TOKEN"]),
        (" A_TOKEN , HF_H*", ["A_TOKEN", "HF_HOME"]),
        ("NONE_OF_THEM", []),
        ("FOURFOLD_KEY", ["FOURFOLD_KEY"]),
    ],
)
def test_workers_get_the_variables_that_are_listed(monkeypatch, text, expected):
    if text is not None:
        monkeypatch.setenv("FOURFOLD_ENV", text)
    assert names_in_a_worker() == expected


@pytest.mark.usefixtures("variables")
def test_a_worker_that_has_had_all_variables_has_the_listed_ones_in_the_next_call(monkeypatch):
    assert names_in_a_worker() == NAMES
    monkeypatch.setenv("FOURFOLD_ENV", "HF_HOME")
    assert names_in_a_worker() == ["HF_HOME"]
    monkeypatch.delenv("FOURFOLD_ENV")
    assert names_in_a_worker() == NAMES


def test_what_python_and_libraries_need_is_always_there(monkeypatch):
    needed = ["PATH", "LC_ALL", "PYTHONHASHSEED", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "FOURFOLD_ENGINE"]
    for name in needed:
        monkeypatch.setenv(name, "0" if name == "PYTHONHASHSEED" else os.environ.get(name, "auto"))
    monkeypatch.setenv("FOURFOLD_ENV", "HF_HOME")
    assert environment.for_workers().keys() >= set(needed)
    (found,) = on_processes(lambda names: [os.environ.get(name) for name in names], [needed])
    assert found == [os.environ[name] for name in needed]


@pytest.mark.parametrize(
    ("text", "word"), [("A B", "A B"), ("A,,B", ""), ("A*B", "A*B"), ("*", "*"), ("1A", "1A"), ("A=1", "A=1")]
)
def test_a_list_of_variables_has_names_only(monkeypatch, text, word):
    monkeypatch.setenv("FOURFOLD_ENV", text)
    with pytest.raises(OptionError, match=re.escape(f"FOURFOLD_ENV={text!r}: {word!r} is not the name of a variable")):
        ff.map(abs, [1], engine="serial")
