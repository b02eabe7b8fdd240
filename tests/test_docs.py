"""Every Python block in the README and the docs runs, and every name in them exists."""

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fourfold as ff
from fourfold.workloads.dataset import Dataset
from fourfold.workloads.frame import Frame

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


CASES = [(page, number) for page in PAGES for number in range(len(blocks(page)))]


@pytest.mark.parametrize(("page", "number"), CASES, ids=lambda value: getattr(value, "name", value))
def test_a_python_block_runs(page: Path, number: int) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(blocks(page)[number], f"{page.name}[{number}]", "exec"), {"__name__": "__doc_test__"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_public_name_in_prose_exists(page: Path) -> None:
    for name in re.findall(r"\bff\.(\w+)", page.read_text(encoding="utf-8")):
        assert hasattr(ff, name), f"{page.name} speaks of ff.{name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_in_prose_exists(page: Path) -> None:
    for path in re.findall(
        r"`((?:src|tests|benchmarks|docs|distribute|execute|divide|aggregate)/[\w/]+\.(?:py|md))`", page.read_text()
    ):
        assert (ROOT / path).exists() or (ROOT / "src" / "fourfold" / path).exists(), f"{page.name} speaks of {path}"


def test_the_readme_shows_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make demo" in text
    assert "make test" in text


def test_the_readme_example_prints_what_it_says() -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(blocks(ROOT / "README.md")[0], {"__name__": "__doc_test__"})
    values, verdict = out.getvalue().splitlines()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert values in readme
    assert verdict.startswith("stayed the loop: 3 items")
    assert re.sub(r"[\d.]+ .?s\b", "T", verdict) in re.sub(r"[\d.]+ .?s\b", "T", readme)


def test_the_table_of_engines_is_what_they_declare() -> None:
    script = Path(__file__).parents[1] / "scripts" / "write_engines.py"
    done = subprocess.run([sys.executable, str(script), "--check"], check=False, timeout=60)
    assert done.returncode == 0, "type: python scripts/write_engines.py"


def test_the_table_of_methods_has_all_of_a_dataset_and_says_which_a_frame_has() -> None:
    page = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")
    table = page.partition("<!-- methods -->\n")[2].partition("<!-- end of methods -->")[0]
    of_frames = {}
    for line in table.splitlines()[2:]:
        names, _, frame = line.strip("|").split("|")
        of_frames |= dict.fromkeys(re.findall(r"`(\w+)`", names), not frame.strip().startswith("–"))

    def methods(of: type) -> set[str]:
        return {name for name, each in vars(of).items() if not name.startswith("_") and callable(each)}

    assert set(of_frames) == methods(Dataset)
    assert {name for name, is_there in of_frames.items() if is_there} == methods(Frame)
