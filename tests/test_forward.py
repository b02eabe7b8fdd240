"""What items print, log and warn in other processes reaches the driver's own streams, loggers and warnings, with the index."""

import io
import logging
import os
import re
import subprocess
import sys
import textwrap
import warnings

import pytest

import fourfold as ff

PROCESSES = {"engine": "processes", "workers": 2}


# ---- print -----------------------------------------------------------------------------------------------------------------


def test_lines_reach_the_drivers_streams_with_the_index(capsys):
    def talk(item):
        print("out", item)
        print("err", item, file=sys.stderr)

    ff.map(talk, range(5), **PROCESSES)
    out, err = capsys.readouterr()
    assert sorted(out.splitlines()) == [f"[item {n}] out {n}" for n in range(5)]
    assert sorted(err.splitlines()) == [f"[item {n}] err {n}" for n in range(5)]


def test_they_are_those_that_the_driver_has_at_that_moment():
    instead = io.StringIO()
    before, sys.stdout = sys.stdout, instead
    try:
        ff.map(lambda item: print("here"), range(1), **PROCESSES)
    finally:
        sys.stdout = before
    assert instead.getvalue() == "[item 0] here\n"


def test_the_index_is_that_of_the_input(capsys):
    ff.map(lambda item: print(item), "abcdef", chunk=2, cost=lambda item: ord(item), **PROCESSES)
    assert sorted(capsys.readouterr().out.splitlines()) == [f"[item {n}] {letter}" for n, letter in enumerate("abcdef")]


def test_parts_of_a_line_make_one_line(capsys):
    def talk(item):
        print("a", end="")
        sys.stdout.write("b")
        print("c")

    ff.map(talk, range(2), **PROCESSES)
    assert sorted(capsys.readouterr().out.splitlines()) == ["[item 0] abc", "[item 1] abc"]


def test_bytes_are_lines_too(capsys):
    def talk(item):
        sys.stdout.buffer.write("ü\n".encode()[:1])
        sys.stdout.buffer.write("ü\n".encode()[1:])
        sys.stdout.buffer.flush()

    ff.map(talk, range(2), **PROCESSES)
    assert sorted(capsys.readouterr().out.splitlines()) == ["[item 0] ü", "[item 1] ü"]


def test_programs_that_an_item_starts_can_print(capfd):
    ff.map(lambda item: subprocess.run(["echo", "hello"], stdout=sys.stdout, check=True).returncode, [0], **PROCESSES)
    assert capfd.readouterr().out in ("hello\n", "")  # "": the workers are from before this test took the file


def test_several_lines_at_once_are_several_lines(capsys):
    ff.map(lambda item: print("a\n\nb"), [0], **PROCESSES)
    assert capsys.readouterr().out == "[item 0] a\n[item 0] \n[item 0] b\n"


def test_a_line_without_end_comes_with_its_chunk(capsys):
    ff.map(lambda item: print("no end", end=""), [0], **PROCESSES)
    assert capsys.readouterr().out == "[item 0] no end\n"


@pytest.mark.parametrize("length", [2047, 2048, 2049, 10_000, 300_000])
def test_a_long_line_stays_one_line(capsys, length):
    ff.map(lambda item: print(str(item) * length), range(4), chunk=1, **PROCESSES)
    lines = capsys.readouterr().out.splitlines()
    assert sorted(lines) == [f"[item {n}] {str(n) * length}" for n in range(4)]


def test_long_lines_written_piece_by_piece_stay_lines(capsys):
    def talk(item):
        for _ in range(10):
            sys.stdout.write("x" * 1500)
        sys.stdout.write("\nend\n")

    ff.map(talk, [0], **PROCESSES)
    assert capsys.readouterr().out == f"[item 0] {'x' * 15_000}\n[item 0] end\n"


def test_many_lines_come_all_and_in_order(capsys):
    def talk(item):
        for number in range(5000):
            print(item, number)

    ff.map(talk, range(2), chunk=1, **PROCESSES)
    lines = capsys.readouterr().out.splitlines()
    for item in range(2):
        assert [line for line in lines if line.startswith(f"[item {item}]")] == [
            f"[item {item}] {item} {n}" for n in range(5000)
        ]


def test_a_reader_that_is_slow_does_not_stop_a_talkative_item():
    def talk(item):
        for number in range(3000):
            print("line", number)
        return item

    stream = ff.imap(talk, range(6), chunk=1, **PROCESSES)
    before, sys.stdout = sys.stdout, io.StringIO()
    try:
        assert list(stream) == list(range(6))
        assert sys.stdout.getvalue().count("\n") == 18_000
    finally:
        sys.stdout = before


def test_a_stream_that_is_closed_early_lets_talkative_items_go():
    def talk(item):
        for _ in range(3000):
            print("line")

    before, sys.stdout = sys.stdout, io.StringIO()
    try:
        stream = ff.imap(talk, range(1000), chunk=1, **PROCESSES)
        next(stream)
        stream.close()
    finally:
        sys.stdout = before
    assert ff.map(abs, [-1], **PROCESSES) == [1]


def test_text_that_the_drivers_stream_cannot_encode_is_escaped(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert ff.map(lambda item: print("\u20ac \ud800") or item, range(2), workers=1, engine="processes") == [0, 1]
    sys.stdout.flush()
    assert raw.getvalue().splitlines() == [rb"[item %d] \u20ac \ud800" % n for n in range(2)]


def test_a_driver_without_streams_is_spared(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert ff.map(lambda item: print("nobody hears") or item, [3], **PROCESSES) == [3]


def test_an_item_can_ask_the_stream_what_it_is():
    def ask(item):
        return sys.stdout.writable(), sys.stdout.isatty(), sys.stdout.encoding, sys.stdin.read()

    assert ff.map(ask, [0], **PROCESSES) == [(True, False, "utf-8", "")]


def test_what_a_failing_item_printed_before_is_there(capsys):
    def talk_and_fail(item):
        print("last words")
        raise ValueError(item)

    with pytest.raises(ValueError, match="0"):
        ff.map(talk_and_fail, [0], **PROCESSES)
    assert "[item 0] last words" in capsys.readouterr().out


def test_print_while_a_worker_builds_its_instance_has_no_index(capsys):
    class Model:
        def __init__(self):
            print("loading")

        def __call__(self, item):
            return item

    ff.map(Model, [1], engine="processes", workers=1)
    assert capsys.readouterr().out == "loading\n"


# ---- logging ------------------------------------------------------------------------------------------------------------------


def test_records_reach_the_drivers_loggers_with_level_name_and_index(caplog):
    def talk(item):
        logging.getLogger("test.forward").warning("number %d of %s", item, "many")

    ff.map(talk, range(3), **PROCESSES)
    ours = [record for record in caplog.records if record.name == "test.forward"]
    assert sorted(record.getMessage() for record in ours) == [f"[item {n}] number {n} of many" for n in range(3)]
    assert {record.levelname for record in ours} == {"WARNING"}
    assert sorted(record.item for record in ours) == [0, 1, 2]
    assert {(record.funcName, record.filename) for record in ours} == {("talk", "test_forward.py")}


def test_a_message_with_percent_signs_is_left_alone(caplog):
    ff.map(lambda item: logging.getLogger("test.forward").error("100% %s"), [0], **PROCESSES)
    assert "[item 0] 100% %s" in [record.getMessage() for record in caplog.records]


def test_the_drivers_levels_hold_in_the_workers_also_when_they_change(caplog):
    logger = logging.getLogger("test.forward.levels")

    def talk(item):
        logging.getLogger("test.forward.levels").debug("debug")
        logging.getLogger("test.forward.levels").error("error")
        return logging.getLogger("test.forward.levels").getEffectiveLevel()

    try:
        for level, heard in [(logging.DEBUG, ["debug", "error"]), (logging.CRITICAL, []), (logging.NOTSET, ["error"])]:
            caplog.clear()
            logger.setLevel(level)
            (effective,) = ff.map(talk, [0], engine="processes", workers=1)
            assert effective == logger.getEffectiveLevel()
            said = [record.getMessage() for record in caplog.records if record.name == logger.name]
            assert said == [f"[item 0] {text}" for text in heard]
    finally:
        logger.setLevel(logging.NOTSET)


def test_an_exception_in_a_record_comes_as_text(caplog):
    def talk(item):
        try:
            1 / 0  # noqa: B018
        except ZeroDivisionError:
            logging.getLogger("test.forward").exception("it broke")

    ff.map(talk, [0], **PROCESSES)
    assert "[item 0] it broke" in caplog.text
    assert "ZeroDivisionError: division by zero" in caplog.text


def test_what_cannot_travel_in_a_record_is_left_out(caplog):
    def talk(item):
        extra = {"stream": sys.stdout, "number": 5, "long": "x" * 50_000}
        logging.getLogger("test.forward").warning("with extras", extra=extra)

    ff.map(talk, [0], **PROCESSES)
    (record,) = [record for record in caplog.records if record.name == "test.forward"]
    assert record.getMessage() == "[item 0] with extras"
    assert record.number == 5


def test_a_record_that_is_too_large_comes_without_its_extras(caplog):
    def talk(item):
        logging.getLogger("test.forward").warning("m" * 5000, extra={f"extra_{n}": str(n) * 1000 for n in range(300)})

    ff.map(talk, [0], **PROCESSES)
    (record,) = [record for record in caplog.records if record.name == "test.forward"]
    assert record.getMessage().startswith("[item 0] mmmm")
    assert record.levelname == "WARNING"
    assert not hasattr(record, "extra_0")


def test_a_long_traceback_in_a_record_keeps_its_end(caplog):
    def talk(item):
        try:
            try:
                raise KeyError("cause" * 1000)
            except KeyError as error:
                raise ValueError("the reason") from error
        except ValueError:
            logging.getLogger("test.forward").exception("it broke")

    ff.map(talk, [0], **PROCESSES)
    assert "ValueError: the reason" in caplog.text


def test_a_record_that_cannot_be_formatted_does_not_fail_the_item(capsys):
    def talk(item):
        logging.getLogger("test.forward").warning("a number: %d", "none")
        return "went on"

    assert ff.map(talk, [0], **PROCESSES) == ["went on"]
    assert "Logging error" in capsys.readouterr().err


def test_the_drivers_handlers_are_not_called_in_the_workers(tmp_path):
    path = tmp_path / "log"
    handler = logging.FileHandler(path)
    logger = logging.getLogger("test.forward.handler")
    logger.addHandler(handler)
    try:
        ff.map(lambda item: logging.getLogger("test.forward.handler").warning("once"), range(4), **PROCESSES)
    finally:
        logger.removeHandler(handler)
        handler.close()
    assert sorted(path.read_text().splitlines()) == [f"[item {n}] once" for n in range(4)]


# ---- warnings -------------------------------------------------------------------------------------------------------------------


def warn(item):
    import warnings

    warnings.warn(f"beware of {item}", RuntimeWarning, stacklevel=1)
    return item


def test_warnings_reach_the_drivers_with_category_place_and_index():
    with pytest.warns(RuntimeWarning, match=r"^\[item \d\] beware of \d$") as caught:
        assert ff.map(warn, [0, 1, 2, 3], **PROCESSES) == [0, 1, 2, 3]
    assert sorted(str(each.message) for each in caught) == [f"[item {n}] beware of {n}" for n in range(4)]
    assert {(each.filename, each.category) for each in caught} == {(__file__, RuntimeWarning)}


def test_a_warning_that_is_an_error_here_is_one_there():
    results = ff.map(warn, range(3), on_error="collect", **PROCESSES)  # pytest runs us with the filter "error"
    assert [(failure.error_type, failure.message) for failure in results] == [
        ("RuntimeWarning", f"beware of {n}") for n in range(3)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert ff.map(warn, range(3), **PROCESSES) == [0, 1, 2]
    with pytest.raises(RuntimeWarning, match="beware of 0"):
        ff.map(warn, range(3), **PROCESSES)


def test_the_same_warning_of_many_items_is_shown_once_by_default(recwarn):
    def warn_the_same(item):
        import warnings

        warnings.warn("the same", UserWarning, stacklevel=1)

    warnings.simplefilter("default")
    ff.map(warn_the_same, range(20), chunk=3, **PROCESSES)
    (shown,) = recwarn.list
    assert re.fullmatch(r"\[item \d+\] the same", str(shown.message))


def test_a_warning_class_of_an_unusual_shape_is_still_shown():
    def warn_oddly(item):
        import warnings

        class TwoArguments(UserWarning):
            def __init__(self, text, code):
                super().__init__(text)

        warnings.warn(TwoArguments("odd", 3), stacklevel=1)
        return item

    with pytest.warns(UserWarning, match=r"\[item 0\] odd"):
        assert ff.map(warn_oddly, [0], **PROCESSES) == [0]


def test_a_warning_about_another_place_is_about_that_place():
    def warn_of_another_place(item):
        import warnings

        warnings.warn_explicit(UnicodeWarning("odd"), None, "some.py", 7)
        return item

    with pytest.warns(UnicodeWarning, match=r"\[item 0\] odd") as caught:
        assert ff.map(warn_of_another_place, [0], **PROCESSES) == [0]
    assert (caught[0].filename, caught[0].lineno) == ("some.py", 7)


# ---- the same in a program of its own -------------------------------------------------------------------------------------------


def test_a_script_prints_what_its_items_print_and_its_stderr_is_clean(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
            import fourfold as ff

            def talk(item):
                print("hello", item)
                return item

            if __name__ == "__main__":
                print(ff.map(talk, [1, 2], engine="processes", workers=1))
        """)
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "[item 0] hello 1\n[item 1] hello 2\n[1, 2]\n"
