"""The folder of a recorded fit: what was fitted, in words, and the runs of its passes.

RUN/fit          the name of the fit: see kept.py
RUN/fit.json     the estimator and its columns, as people read them
RUN/pass-1 …     a run for each pass over the rows; pass-2-kept is of rows that were kept
"""

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fourfold.errors import RunChanged

OF_FIT = "fit.json"


def words_of(estimator: Any, target: str | None, features: list[str], weight: str | None) -> dict[str, str]:
    """What a fit is of."""
    text = re.sub(r" at 0x[0-9a-f]+", "", re.sub(r"\s+", " ", repr(estimator)))
    return {"estimator": text, "target": repr(target), "features": ", ".join(features), "weight": repr(weight)}


@contextmanager
def recorded(run: str | None, of: Mapping[str, str]) -> Iterator[None]:
    """A block that makes the passes of a fit, with `run=`.

    Raises:
        RunChanged: The passes there are of another fit; it says what differs.
    """
    path = None if run is None else Path(run, OF_FIT)
    before = dict(of) if path is None else _noted(path, of)
    try:
        yield
    except RunChanged as error:
        told = [f"{name} was {was} and is {of[name]}" for name, was in before.items() if was != of.get(name, was)]
        if not told:
            raise
        raise RunChanged(
            f"the passes in {run} are of another fit: {'; '.join(told)}. They say nothing of this one: give it another "
            f"folder, or remove {run}"
        ) from error


def _noted(path: Path, of: Mapping[str, str]) -> dict[str, str]:
    """What is in the file; where there is none, it is written."""
    try:
        found = json.loads(path.read_text())
        return {str(name): str(was) for name, was in found.items()}
    except FileNotFoundError:
        handle, private = tempfile.mkstemp(dir=path.parent)  # as all of a run, nobody else may read it
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(of, file, indent=1)
        os.replace(private, path)
    except (ValueError, AttributeError):  # words for people: a fit goes on without them
        pass
    return dict(of)


def passes_in(folder: Path) -> list[Path]:
    """The runs of the passes that a fit has recorded, the last one first; none where nothing was fitted."""
    if not (folder / "fit").is_file():
        return []
    numbered = [(re.fullmatch(r"pass-(\d+)(-kept)?", path.name), path) for path in folder.iterdir()]
    found = [(int(match[1]), path.name, path) for match, path in numbered if match]
    return [path for *_, path in sorted(found, reverse=True)]
