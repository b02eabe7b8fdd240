"""The tree of errors: as it is drawn, picklable, and complete."""

import inspect
import pickle
import re

import cloudpickle
import pytest
from running import run_script

import fourfold as ff
from fourfold import errors

CLASSES = [each for each in vars(errors).values() if inspect.isclass(each) and each.__module__ == errors.__name__]
TREE = [each for each in CLASSES if issubclass(each, errors.FourfoldError)]


def drawn():
    """The tree at the top of errors.py, as {class: (its parent in the drawing, the built-in beside it)}."""
    found, path = {}, []
    (drawing,) = [part for part in inspect.getdoc(errors).split("\n\n") if "├──" in part]
    for line in drawing.splitlines():
        branch = re.match(r"([│├└─ ]*)(\w+)(?: \((\w+)\))? +\S", line)
        assert branch is not None, line
        indent, name, builtin = branch.groups()
        depth = len(indent) // 4
        path[depth:] = [name]
        found[name] = (path[depth - 1] if depth else None, builtin)
    return found


def test_the_drawing_has_every_error_and_no_other():
    assert sorted(drawn()) == sorted(each.__name__ for each in TREE)


def test_the_drawing_says_the_real_parents():
    for name, (parent, builtin) in drawn().items():
        bases = [base.__name__ for base in getattr(errors, name).__bases__]
        assert bases == [word for word in (parent or "Exception", builtin) if word], name


def test_every_error_can_be_caught_as_a_fourfold_error_but_the_text_of_a_traceback():
    assert [each.__name__ for each in CLASSES if each not in TREE] == ["RemoteTraceback"]


@pytest.mark.parametrize("pickler", [pickle, cloudpickle], ids=["pickle", "cloudpickle"])
@pytest.mark.parametrize("cls", TREE, ids=lambda cls: cls.__name__)
def test_every_error_survives_pickling_with_its_message_fields_and_notes(cls, pickler):
    error = cls("what happened", failures=[1, 2], item="3")
    error.add_note("a note")
    back = pickler.loads(pickler.dumps(error))
    assert type(back) is cls
    assert str(back) == "what happened"
    assert (back.failures, back.item, back.__notes__) == ([1, 2], "3", ["a note"])


def test_the_text_of_a_traceback_survives_pickling():
    back = pickle.loads(pickle.dumps(errors.RemoteTraceback("Traceback ...\n")))
    assert (type(back), back.text, str(back)) == (errors.RemoteTraceback, "Traceback ...\n", '\n"""\nTraceback ...\n"""')


@pytest.mark.parametrize("cls", TREE, ids=lambda cls: cls.__name__)
def test_every_error_says_what_it_means(cls):
    assert inspect.getdoc(cls)


def test_failures_inside_an_error_survive_pickling():
    with pytest.raises(errors.TooManyFailures) as caught:
        ff.map(int, ["1", "x", "y"], on_error="skip", max_failures=1, engine="serial")
    back = pickle.loads(pickle.dumps(caught.value))
    assert [(failure.index, failure.error_type) for failure in back.failures] == [(1, "ValueError"), (2, "ValueError")]
    assert str(back) == str(caught.value)


# ---- the names of the package -----------------------------------------------------------------------------------------------------


def test_the_public_names_are_sorted_real_and_shown():
    assert ff.__all__ == sorted(ff.__all__)
    for name in ff.__all__:
        assert getattr(ff, name) is not None, name
    assert set(dir(ff)) >= set(ff.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'fourfold' has no attribute 'mapp'"):
        ff.mapp  # noqa: B018


def test_every_error_can_be_reached_from_the_package():
    for cls in TREE:
        assert getattr(ff.errors, cls.__name__) is cls


def test_every_error_survives_pickling_where_tblib_has_been_at_work(tmp_path):
    pytest.importorskip("tblib")
    text = """
        import pickle
        import tblib.pickling_support
        import fourfold.errors as errors

        def tree(cls):
            return [cls, *(each for below in cls.__subclasses__() for each in tree(below))]

        tblib.pickling_support.install()
        for cls in tree(errors.FourfoldError):
            error = cls("what happened", item="3")
            error.add_note("a note")
            back = pickle.loads(pickle.dumps(error))
            assert (type(back), str(back), back.item, back.__notes__) == (cls, "what happened", "3", ["a note"]), back
        print(len(tree(errors.FourfoldError)))
    """
    ended = run_script(text, folder=tmp_path)
    assert (ended.code, ended.stderr) == (0, "")
    assert int(ended.stdout) > 20
