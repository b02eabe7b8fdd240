"""What counts as the same function, and the same item."""

import functools
import importlib
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from fourfold.runs.fingerprint import differences, item_digest, program_parts

MODULE = '''
"""A module."""
import math

RATE = 3
TABLE = {"a": 1}


def helper(x, scale=2):
    """Doubles."""
    return x * scale


class Model:
    """A model."""
    size = 4

    def __init__(self, k):
        self.k = k

    def __call__(self, x):
        return self.inner(x) + self.k

    def inner(self, x):
        return x - 1


def score(x):
    # a comment
    if x in {1, 2, 3}:
        return 7
    return helper(x) + RATE + math.floor(x)


def through_a_class(x):
    return Model(2)(x)


def of_table(x):
    return [TABLE.get(key) for key in x]


def make(k):
    def inner(x):
        return x + k

    return inner
'''


@pytest.fixture
def edited(tmp_path, monkeypatch):
    """Returns what imports the module with an edit made to its source, as a new one each time."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def edit(old="", new=""):
        assert old in MODULE
        (tmp_path / "scoring.py").write_text(MODULE.replace(old, new) if old else MODULE)
        importlib.invalidate_caches()
        sys.modules.pop("scoring", None)
        return importlib.import_module("scoring")

    yield edit
    sys.modules.pop("scoring", None)


def changed(edited, old, new, name="score"):
    """What differs in the function `name` after an edit of its module."""
    before = program_parts({"function": getattr(edited(), name)})
    after = program_parts({"function": getattr(edited(old, new), name)})
    return differences(before, after)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# a comment", "# another one"),
        ('"""A module."""', '"""A much longer docstring.\n\nOf three lines."""'),
        ('    """Doubles."""\n', ""),
        ('"""A model."""', '"""A better model."""'),
        ("def helper", "\n\n\ndef unused():\n    return 9\n\n\ndef helper"),
        ("TABLE = {", "UNUSED = 4\nTABLE = {"),
    ],
)
def test_comments_docstrings_places_and_what_is_not_used_do_not_count(edited, old, new):
    assert changed(edited, old, new) == []


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("return 7", "return 8", "scoring.score has other constants: 7 is now 8"),
        ("{1, 2, 3}", "{1, 2, 4}", "scoring.score has other constants: a text or collection changed"),
        ("helper(x) + RATE", "helper(x) - RATE", "scoring.score has other code"),
        ("RATE = 3", "RATE = 4", "scoring.RATE was 3 and is 4"),
        ("return x * scale", "return x / scale", "scoring.helper has other code"),
        ("scale=2", "scale=5", "the defaults of scoring.helper changed"),
    ],
)
def test_what_changed_is_named(edited, old, new, told):
    assert told in changed(edited, old, new)


def test_methods_and_attributes_of_classes_count(edited):
    assert changed(edited, "return x - 1", "return x - 2", "through_a_class") == [
        "scoring.Model.inner has other constants: 1 is now 2"
    ]
    assert changed(edited, "size = 4", "size = 5", "Model") == ["scoring.Model.size was 4 and is 5"]
    assert changed(edited, "return x - 1", "return x - 2", "Model") != []


def test_data_that_the_function_uses_counts(edited):
    assert changed(edited, '{"a": 1}', '{"a": 2}', "of_table") == ["scoring.TABLE changed"]


def test_closures_arguments_and_objects_count(edited):
    module = edited()
    for one, two in [
        (module.make(1), module.make(2)),
        (functools.partial(module.helper, scale=3), functools.partial(module.helper, scale=4)),
        (module.Model(1), module.Model(2)),
        (module.Model(1).inner, module.Model(2).inner),
    ]:
        assert differences(program_parts({"function": one}), program_parts({"function": two}))
        assert not differences(program_parts({"function": one}), program_parts({"function": one}))


def test_a_helper_of_another_module_of_the_user_counts(edited, tmp_path):
    (tmp_path / "caller.py").write_text("import scoring\n\ndef call(x):\n    return scoring.helper(x)\n")
    edited()
    caller = importlib.import_module("caller")
    before = program_parts({"function": caller.call})
    edited("return x * scale", "return x + scale")
    after = program_parts({"function": importlib.reload(caller).call})
    sys.modules.pop("caller")
    assert differences(before, after) == ["scoring.helper has other code"]


def test_an_installed_package_counts_by_its_version(monkeypatch):
    def fn(x):
        return np.sqrt(x)

    before = program_parts({"function": fn})
    monkeypatch.setattr(np, "__version__", "99.1")
    (told,) = differences(before, program_parts({"function": fn}))
    assert told.startswith("the package numpy was ")
    assert told.endswith(" and is 99.1")


def test_functions_that_use_each_other_end(edited):
    def even(n):
        return n == 0 or odd(n - 1)

    def odd(n):
        return n != 0 and even(n - 1)

    assert program_parts({"function": even}) == program_parts({"function": even})


@pytest.mark.parametrize(
    "fn", [abs, len, str.upper, int, np.sqrt, dict, "{}".format, functools.partial(int, base=2), type("C", (), {})]
)
def test_what_is_no_function_of_the_user_has_parts_too(fn):
    assert not differences(program_parts({"function": fn}), program_parts({"function": fn}))


def test_a_lock_in_the_closure_is_no_change():
    import threading

    def make():
        lock = threading.Lock()
        return lambda x: lock and x

    assert differences(program_parts({"function": make()}), program_parts({"function": make()})) == []


SCRIPT = """
    import functools, fourfold.runs.fingerprint as fp, json, re
    NAMES = {"a", "bb", "ccc", "dddd"}
    PATTERN = re.compile("x+")
    class Item:
        def __init__(self, names): self.names = names
    def fn(x): return [name for name in NAMES if name in {"p", "q", "r"}] + PATTERN.findall(x)
    items = [{"x", "y", "z"}, frozenset("abcdef"), ("a", {1: {"q", "w"}}), Item({"k", "l", "m"}), fn, Item, functools.partial(fn, 3)]
    print(json.dumps([fp.program_parts({"function": fn}), [fp.item_digest(item).hex() for item in items]], sort_keys=True))
"""


def test_another_process_finds_the_same_whatever_its_hash_seed(tmp_path):
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    said = {
        subprocess.check_output([sys.executable, "script.py"], cwd=tmp_path, env={**os.environ, "PYTHONHASHSEED": seed})
        for seed in ("1", "2", "3")
    }
    assert len(said) == 1
    assert b'""' not in said.pop()


def test_items_that_are_equal_have_one_digest_and_others_another():
    word = "".join(["wo", "rd"])
    same = [([word, word], ["word", "word"]), ((1, 2.5, None), (1, 2.5, None)), ({"a", "b"}, {"b", "a"})]
    for one, two in same:
        assert item_digest(one) == item_digest(two) != b""
    array = np.arange(12.0).reshape(3, 4)
    assert item_digest(array) == item_digest(array.copy())
    assert item_digest(array) != item_digest(array + 1)
    assert item_digest(array.T) != item_digest(array)
    assert item_digest(array[:, ::2]) == item_digest(array[:, ::2].copy())
    different = [0, 1, 1.0, True, "1", b"1", None, (), [], {}, set(), frozenset(), "", [1], (1,), {1}, frozenset({1})]
    assert len({item_digest(item) for item in different}) == len(different)


def test_an_item_that_contains_itself_has_a_digest():
    item = [1]
    item.append(item)
    assert item_digest(item) not in (b"", item_digest([1]))


class Locked:
    """Cannot be pickled: a lock is in it."""

    def __init__(self, k):
        import threading

        self.k, self.lock = k, threading.Lock()

    def score(self, x):
        return x * self.k


def test_no_text_of_the_program_is_in_its_parts():
    key, token = "secret-of-the-closure", "short"

    def fn(x, default="secret-default"):
        return x == "secret-constant" or (key, token, default)

    told = repr(program_parts({"function": fn}))
    assert "secret" not in told
    assert "short" not in told


def test_what_cannot_be_pickled_is_taken_apart():
    Row = type("Row", (tuple,), {"__module__": "nowhere"})
    assert item_digest(Row((1, 2))) == item_digest(Row((1, 2)))
    assert item_digest(Row((1, 2))) != item_digest(Row((1, 3)))
    assert item_digest(Locked(1)) == item_digest(Locked(1))
    assert item_digest(Locked(1)) != item_digest(Locked(2))
    assert differences(program_parts({"function": Locked(2).score}), program_parts({"function": Locked(3).score}))
    assert item_digest(each for each in ()) == item_digest(each for each in (1,))


def test_things_of_one_name_are_told_apart():
    def parts(*functions):
        return program_parts(dict(zip("abcdef", functions, strict=False)))

    assert differences(parts(lambda x: x * 2, lambda a, b: a + b), parts(lambda x: x * 3, lambda a, b: a + b))
    assert differences(parts(lambda x: x * 2, lambda a, b: a + b), parts(lambda x: x * 2, lambda a, b: a - b))
    one = {"a": lambda x: x + 1, "b": lambda x: x + 2}
    two = {"a": lambda x: x + 1, "b": lambda x: x + 3}
    assert differences(parts(lambda x: one[x]), parts(lambda x: two[x]))


WRAPPED = """
import functools

def log(fn):
    @functools.wraps(fn)
    def inner(x):
        return fn(x)
    return inner

@log
def decorated(x):
    return x + 1

@functools.cache
def cached(x):
    return x + 2

@functools.singledispatch
def dispatched(x):
    return x + 3

@dispatched.register
def of_str(x: str):
    return x + "4"

class Model:
    @functools.cached_property
    def scale(self):
        return 5

    @property
    def rate(self):
        return 6

    @rate.setter
    def rate(self, value):
        self._rate = value + 7

    @staticmethod
    def fixed(x):
        return x + 8

def late(x):
    from later import helper
    return helper(x)

def score(x):
    m = Model()
    m.rate = 1
    return decorated(x) + cached(x) + dispatched(x) + m.scale + late(x)
"""


@pytest.mark.parametrize("number", ["+ 1", "+ 2", "+ 3", '"4"', "return 5", "return 6", "value + 7", "+ 8", "+ 9"])
def test_what_is_wrapped_registered_computed_or_imported_late_counts(tmp_path, monkeypatch, number):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    other = number.replace(number.strip('"')[-1], "0")

    def parts(edit):
        from fourfold.runs import fingerprint

        fingerprint._source_of.cache_clear()
        (tmp_path / "wrapped.py").write_text(edit(WRAPPED))
        (tmp_path / "later.py").write_text(edit("def helper(x):\n    # a comment\n    return x + 9\n"))
        importlib.invalidate_caches()
        sys.modules.pop("wrapped", None)
        module = importlib.import_module("wrapped")
        module.score.__globals__["cached"](1)
        return program_parts({"function": module.score})

    same, edited = (
        parts(lambda text: text.replace("# a comment", "# another")),
        parts(lambda text: text.replace(number, other)),
    )
    original = parts(lambda text: text)
    sys.modules.pop("wrapped")
    assert differences(original, same) == []
    assert differences(original, edited) != []


def test_only_what_is_asked_of_an_object_counts():
    class Arguments:
        def __init__(self, **values):
            self.__dict__.update(values)

    def of(arguments):
        space = {"arguments": arguments, "__name__": "script", "__builtins__": {}}
        exec("def fn(x): return x * arguments.scale", space)
        return program_parts({"function": space["fn"]})

    assert differences(of(Arguments(scale=2, workers=1)), of(Arguments(scale=2, workers=9))) == []
    assert differences(of(Arguments(scale=2)), of(Arguments(scale=3))) == ["script.arguments.scale was 2 and is 3"]


def test_a_long_way_of_functions_ends():
    space = {"__name__": "script"}
    exec("\n".join(f"def f{n}(x): return f{n + 1}(x)" for n in range(2000)), space)
    assert len(program_parts({"function": space["f0"]})) > 1999
