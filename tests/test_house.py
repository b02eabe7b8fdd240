"""The import rule: who may import whom in src/fourfold.

    errors records addresses options shown system version
      <- divide distribute execute aggregate, runs        (these do not import each other)
        <- worker site <- lanes recorded <- call <- compose replay    (the modules that join them)
          <- data patterns <- workloads <- insight independence interop <- testing <- cli

Read from the source with `ast`, so an import counts wherever it stands, in a function and under TYPE_CHECKING
too. Each rule is a function from imports to sentences that name what breaks it, and is broken once below.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "fourfold"

LAYERS = [
    {"errors", "fixed", "records", "addresses", "options", "shown", "system", "version"},
    {"divide", "distribute", "execute", "aggregate", "runs"},
    {"worker", "site"},
    {"engines"},
    {"lanes", "recorded"},
    {"call"},
    {"compose", "replay"},
    {"data", "patterns"},
    {"workloads"},
    {"insight", "independence", "interop"},
    {"testing"},
    {"cli", "__main__"},
]
SEPARATE = LAYERS[1]
"""The parts that do not import each other: what one needs of another, it is handed."""

EXECUTE_NEEDS = {"errors", "records", "shown"}
EXECUTE_NEEDS_AT_IMPORT = {"cloudpickle"}
EXECUTE_NEEDS_IN_FUNCTIONS = {"cloudpickle", "numpy", "threadpoolctl"}

HEAVY = ["asyncio", "cloudpickle", "multiprocessing", "numpy", "psutil", "rich", "tqdm", "typer"]
"""What `import fourfold` must not load: each costs milliseconds before the user's first line of work."""


@dataclass(frozen=True)
class Import:
    """What one import statement imports. `module` and `target` are dotted paths, `fourfold.` included."""

    module: str
    target: str
    line: int
    stands: str
    """"at import", "in a function", or "for types" (under TYPE_CHECKING: never run)."""

    @property
    def where(self) -> str:
        return f"{self.module}:{self.line}"

    @property
    def inside(self) -> bool:
        return self.target.split(".")[0] == self.module.split(".")[0]


# ---- reading


def read_imports(package: Path) -> list[Import]:
    """Every import in the folder of a package."""
    modules = {_dotted(path, package): path for path in sorted(package.rglob("*.py"))}
    found: list[Import] = []
    for module, path in modules.items():
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        for node, stands in _import_nodes(tree, "at import"):
            for target in _targets(node, module, path.name == "__init__.py", modules.keys()):
                found.append(Import(module, target, node.lineno, stands))
    return found


def _dotted(path: Path, package: Path) -> str:
    parts = [package.name, *path.relative_to(package).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _import_nodes(node: ast.AST, stands: str) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node, stands
    elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        for child in node.body:
            yield from _import_nodes(child, "for types")
        for child in node.orelse:
            yield from _import_nodes(child, stands)
    else:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and stands == "at import":
            stands = "in a function"
        for child in ast.iter_child_nodes(node):
            yield from _import_nodes(child, stands)


def _targets(node: ast.Import | ast.ImportFrom, module: str, is_package: bool, modules) -> list[str]:
    root = module.split(".")[0]
    if isinstance(node, ast.Import):
        # `import fourfold.errors` without `as` binds the root's name.
        return [root if a.name.split(".")[0] == root and not a.asname else a.name for a in node.names]
    base = node.module or ""
    if node.level:
        parents = module.split(".")[: -(node.level - is_package) or None]
        base = ".".join([*parents, base] if base else parents)
    return [f"{base}.{a.name}" if f"{base}.{a.name}" in modules and base != root else base for a in node.names]


def _part(dotted: str) -> str:
    """The part of the house a module belongs to: `fourfold.divide.chunks` -> `divide`; the root: ``."""
    return [*dotted.split("."), ""][1]


def _engine(dotted: str) -> str:
    """`fourfold.distribute.engines.on_ray.cluster` -> `on_ray`; anything else: ``."""
    names = dotted.split(".")
    return names[3] if names[1:3] == ["distribute", "engines"] and len(names) > 3 else ""


def _rank(part: str) -> int | None:
    return next((rank for rank, layer in enumerate(LAYERS) if part in layer), None)


# ---- the rules


def every_part_has_a_layer(imports: list[Import]) -> Iterator[str]:
    """A new folder or file at the top of the package is given its place in LAYERS, on purpose."""
    parts = {_part(name) for i in imports for name in (i.module, i.target) if name.startswith(i.module.split(".")[0])}
    for part in sorted(parts - {""}):
        if _rank(part) is None:
            yield f"{part} stands in no layer: add it to LAYERS in {__name__}"


def imports_go_down(imports: list[Import]) -> Iterator[str]:
    for i in imports:
        own, other = _rank(_part(i.module)), _rank(_part(i.target)) if i.inside else None
        if own is not None and other is not None and other > own:
            yield f"{i.where} imports {i.target}, which stands above it"


def steps_do_not_import_each_other(imports: list[Import]) -> Iterator[str]:
    for i in imports:
        own, other = _part(i.module), _part(i.target) if i.inside else ""
        if own != other and {own, other} <= SEPARATE:
            yield f"{i.where} imports {i.target}: {own} is handed what it needs of {other}, by compose"


def nothing_imports_the_root(imports: list[Import]) -> Iterator[str]:
    for i in imports:
        # The root itself names its own modules, for type checkers.
        if "." not in i.target and i.inside and i.module != i.target:
            yield f"{i.where} imports the package root: import the name from the module that defines it"


def no_import_circles(imports: list[Import]) -> Iterator[str]:
    targets: dict[str, list[str]] = {}
    for i in imports:
        # Imports of the root are named by a rule of their own.
        if i.inside and "." in i.target:
            targets.setdefault(i.module, []).append(i.target)
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> Iterator[str]:
        if module in path:
            yield " -> ".join([*path[path.index(module) :], module])
        elif module not in done:
            for target in targets.get(module, []):
                yield from walk(target, [*path, module])
            done.add(module)

    for module in targets:
        yield from walk(module, [])


def engines_import_no_other_engine(imports: list[Import]) -> Iterator[str]:
    for i in imports:
        own, other = _engine(i.module), _engine(i.target)
        if own and other and own != other:
            yield f"{i.where} imports {i.target}: what two engines share belongs in distribute/"


def engines_import_libraries_in_functions(imports: list[Import]) -> Iterator[str]:
    for i in imports:
        if _engine(i.module) and i.stands == "at import" and _is_third_party(i):
            yield f"{i.where} imports {i.target} at import: it may be missing; import it where it is used"


def execute_needs_little(imports: list[Import]) -> Iterator[str]:
    for i in imports:
        if _part(i.module) != "execute":
            continue
        if i.inside and _part(i.target) not in {"execute", *EXECUTE_NEEDS}:
            yield f"{i.where} imports {i.target}: in a worker, execute needs errors and records only"
        allowed = EXECUTE_NEEDS_AT_IMPORT if i.stands == "at import" else EXECUTE_NEEDS_IN_FUNCTIONS
        if _is_third_party(i) and i.target.split(".")[0] not in allowed:
            yield f"{i.where} imports {i.target} {i.stands}: a worker may not have it"


def _is_third_party(i: Import) -> bool:
    return not i.inside and i.target.split(".")[0] not in sys.stdlib_module_names


Rule = Callable[[list[Import]], Iterator[str]]
RULES: list[Rule] = [
    every_part_has_a_layer,
    imports_go_down,
    steps_do_not_import_each_other,
    nothing_imports_the_root,
    no_import_circles,
    engines_import_no_other_engine,
    engines_import_libraries_in_functions,
    execute_needs_little,
]


# ---- the house


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    return read_imports(SOURCE)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_source_keeps_the_rule(rule: Rule, imports: list[Import]) -> None:
    assert list(rule(imports)) == []


def test_the_source_is_really_read(imports: list[Import]) -> None:
    assert {i.module.split(".")[0] for i in imports} == {"fourfold"}
    assert any(i.inside for i in imports)


# ---- each rule, broken once

BROKEN: list[tuple[Rule, str, str, str]] = [
    (every_part_has_a_layer, "utils.py", "import os", "utils stands in no layer"),
    (imports_go_down, "errors.py", "from fourfold.compose import map", "fourfold.errors:1"),
    (imports_go_down, "divide/chunks.py", "from ..cli import main", "fourfold.cli"),
    (
        imports_go_down,
        "data/scan.py",
        "def f():\n    from fourfold.workloads import fit",
        "fourfold.data.scan:2",
    ),
    (
        imports_go_down,
        "records.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from fourfold.divide.chunks import Chunk",
        "fourfold.records:3",
    ),
    (imports_go_down, "insight/report.py", "import fourfold.cli.show as show", "fourfold.cli.show"),
    (imports_go_down, "interop/pool.py", "from fourfold.testing import engine_contract", "fourfold.testing"),
    (steps_do_not_import_each_other, "distribute/driver.py", "from ..execute import run", "by compose"),
    (
        steps_do_not_import_each_other,
        "runs/journal.py",
        "from fourfold.aggregate.results import R",
        "by compose",
    ),
    (nothing_imports_the_root, "cli/demo.py", "from fourfold import map", "fourfold.cli.demo:1"),
    (nothing_imports_the_root, "cli/demo.py", "import fourfold as ff", "fourfold.cli.demo:1"),
    (nothing_imports_the_root, "cli/demo.py", "import fourfold.errors", "fourfold.cli.demo:1"),
    (nothing_imports_the_root, "compose.py", "from . import errors", "fourfold.compose:1"),
    (nothing_imports_the_root, "cli/__init__.py", "from .. import errors", "fourfold.cli:1"),
    (no_import_circles, "divide/chunks.py", "from .sizes import f", "divide.chunks -> fourfold.divide.sizes"),
    (
        engines_import_no_other_engine,
        "distribute/engines/on_dask/cluster.py",
        "def f():\n    from fourfold.distribute.engines.on_ray.head import g",
        "fourfold.distribute.engines.on_dask.cluster:2",
    ),
    (
        engines_import_no_other_engine,
        "distribute/engines/on_dask/cluster.py",
        "from .. import on_ray",
        "engines.on_ray",
    ),
    (
        engines_import_libraries_in_functions,
        "distribute/engines/on_ray/cluster.py",
        "import ray.util",
        "ray.util at import",
    ),
    (
        engines_import_libraries_in_functions,
        "distribute/engines/on_processes/pool.py",
        "class Pool:\n    from psutil import Process",
        "on_processes.pool:2",
    ),
    (execute_needs_little, "execute/run.py", "from fourfold.options import Options", "fourfold.options"),
    (execute_needs_little, "execute/run.py", "import numpy as np", "numpy at import"),
    (execute_needs_little, "execute/run.py", "def f():\n    import psutil", "psutil in a function"),
]

SOUND = {
    "__init__.py": "def __getattr__(name):\n    from fourfold.compose import map\n    return map",
    "errors.py": "import os",
    "records.py": "from .errors import FourfoldError",
    "divide/sizes.py": "from fourfold.divide.chunks import g",
    "distribute/__init__.py": "from .driver import drive",
    "distribute/driver.py": "from . import engine\nfrom fourfold.records import Chunk",
    "distribute/engine.py": "from typing import Protocol",
    "distribute/engines/__init__.py": "",
    "distribute/engines/on_ray/__init__.py": "from fourfold.distribute.engines.on_ray.engine import Ray",
    "distribute/engines/on_ray/engine.py": (
        "import typing\nfrom ...engine import Engine\nif typing.TYPE_CHECKING:\n    import ray\ndef f():\n    import ray"
    ),
    "execute/run.py": "import cloudpickle\nfrom ..errors import E\ndef f():\n    import numpy.random",
    "compose.py": "from fourfold.divide import chunks\nfrom fourfold.distribute.driver import drive",
    "cli/__init__.py": "from fourfold.compose import map\nfrom fourfold.cli.demo import demo",
}


def write_package(folder: Path, files: dict[str, str]) -> Path:
    package = folder / "fourfold"
    for name, text in files.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return package


def test_a_sound_package_breaks_no_rule(tmp_path: Path) -> None:
    imports = read_imports(write_package(tmp_path, SOUND))
    assert [sentence for rule in RULES for sentence in rule(imports)] == []


@pytest.mark.parametrize(
    ("rule", "name", "text", "said"),
    BROKEN,
    ids=[f"{r.__name__}-{n}-{k}" for k, (r, n, _, _) in enumerate(BROKEN)],
)
def test_a_broken_rule_is_seen(rule: Rule, name: str, text: str, said: str, tmp_path: Path) -> None:
    imports = read_imports(write_package(tmp_path, {**SOUND, name: text}))
    assert any(said in sentence for sentence in rule(imports)), list(rule(imports))


# ---- importing fourfold costs next to nothing


def heavy_modules_loaded(folder: Path) -> list[str]:
    """Which of HEAVY a fresh interpreter has loaded after `import fourfold` from this folder."""
    code = f"import sys, fourfold; print(*[name for name in {HEAVY} if name in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return run.stdout.split()


def test_importing_fourfold_loads_nothing_heavy() -> None:
    assert heavy_modules_loaded(SOURCE.parent) == []


def test_a_heavy_import_is_seen(tmp_path: Path) -> None:
    write_package(tmp_path, {"__init__.py": "import asyncio, numpy"})
    assert heavy_modules_loaded(tmp_path) == ["asyncio", "numpy"]
