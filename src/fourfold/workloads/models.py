"""What a model is: a fitted estimator, a file that holds one, or a class.

"model.joblib"   "model.skops"   "model.onnx"      loaded once per worker; arrays of joblib files are mapped, not copied
a fitted estimator, Pipeline, module of torch      travels with the plan, its arrays shared
"""

import contextlib
import hashlib
import logging
import os
import re
import socket
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fourfold.errors import MissingExtra, OptionError, OptionTypeError
from fourfold.execute import current
from fourfold.execute.chunk import is_worker_class
from fourfold.workloads.networks import OnnxModel, TorchModule, is_torch

LOADERS = {".joblib": "joblib", ".pkl": "", ".pickle": "", ".skops": "skops", ".onnx": "onnxruntime"}
"""Extensions of files that hold models, and the package that loads them; "" is Python itself."""

POINTER = b"version https://git-lfs"
"""How a file begins that stands for a large one which git-lfs has not fetched."""

NAMES = re.compile(rb"(?:sklearn|scipy|numpy|pandas|lightgbm|xgboost)(?:\.\w+)*")
NAMES_WITHIN = 1 << 20
"""Bytes of a pickle in which names of modules are looked for. Not measured: a forest of 100 trees has all of them in 4,000."""


class Model:
    """A model, before it is loaded.

    Args:
        what: A path, an estimator, a module of torch, or a class with `__call__`.
        init: Arguments of the class.

    Attributes:
        digest: Of the file, so that a recorded run, or a worker that has loaded it before, tells when another model has taken
            its place; "" until it was looked at.

    Raises:
        OptionError: It is no file of a model, or nobody can tell what it is.
    """

    def __init__(self, what: Any, init: tuple[Any, ...] = ()) -> None:
        self.what, self.init, self.digest = what, init, ""
        self.is_file = isinstance(what, str | os.PathLike)
        self.is_class = is_worker_class(what)
        if self.is_file:
            _check_name(os.fspath(what))
            if not self.is_hidden:
                _check_content(os.fspath(what))
        elif self.is_class:
            pass
        elif isinstance(what, type):
            raise OptionTypeError(
                f"model={what.__qualname__}: its instances cannot be called: give it a __call__(self, batch)"
            )
        elif init:
            raise OptionError(f"init={init!r} is for classes, and model= is {_named(what)}")

    @property
    def name(self) -> str:
        """For messages."""
        return os.fspath(self.what) if self.is_file else getattr(self.what, "__qualname__", type(self.what).__qualname__)

    @property
    def is_hidden(self) -> bool:
        """See `fourfold.data.steps.Loadable`."""
        return self.is_file and not os.path.exists(self.what)

    def look(self) -> str:
        """See `fourfold.data.steps.Loadable`."""
        if not self.is_file:
            return ""
        if self.is_hidden:
            raise OptionError(f"model={self.name!r}: {_not_here()}")
        return _digest(os.fspath(self.what))

    def check_here(self) -> None:
        """See `fourfold.data.steps.Loadable`."""
        if self.is_file:
            _check_content(os.fspath(self.what))
            package = LOADERS[_extension(self.what)]
            if package and find_spec(package) is None:
                raise _missing(package)

    @property
    def imports(self) -> tuple[str, ...]:
        """See `fourfold.system.imports`. An estimator that travels itself tells of its modules by that."""
        return _imports_of(os.fspath(self.what)) if self.is_file else ()

    def load(self) -> Any:
        """The estimator, session, module or instance, in a worker.

        Raises:
            Exception: Whatever the file or class raises.
        """
        if self.is_class:
            return self.what(*self.init)
        model = _loaded(os.fspath(self.what)) if self.is_file else _usable(self.what)
        if current.in_worker_process():
            _limit_jobs(model, int(os.environ.get("OMP_NUM_THREADS", "1").split(",")[0]), set())
        return model

    def known(self) -> Any:
        """The estimator when it is here already: what can be checked before anything runs; else None."""
        return None if self.is_file or self.is_class else _usable(self.what)


def _limit_jobs(model: Any, most: int, seen: set[int]) -> None:
    """Let an estimator, and those within it, start no more threads than the worker may: its owner had a whole machine."""
    if id(model) in seen:
        return
    seen.add(id(model))
    if isinstance(model, list | tuple):
        parts = [*model]
    elif isinstance(model, dict):
        parts = [*model.values()]
    elif hasattr(model, "get_params") and hasattr(model, "__dict__"):
        parts = [*vars(model).values()]
        n_jobs = vars(model).get("n_jobs")
        if isinstance(n_jobs, int) and not 0 < n_jobs <= most:
            model.set_params(n_jobs=most)
    else:
        return
    for part in parts:
        _limit_jobs(part, most, seen)


def _named(what: Any) -> str:
    return f"a {type(what).__module__}.{type(what).__qualname__}"


def _usable(model: Any) -> Any:
    return TorchModule(model) if is_torch(model) else model


def _extension(path: str | os.PathLike[str]) -> str:
    return Path(path).suffix.lower()


def _check_name(path: str) -> None:
    if "://" in path:
        raise OptionError(
            f"model={path!r} is a URL, and models are loaded from files: copy it to a folder that all workers see"
        )
    if _extension(path) not in LOADERS:
        raise OptionError(f"model={path!r}: cannot tell what it is from its extension; known are {' '.join(LOADERS)}")


def _check_content(path: str) -> None:
    """Say of a model's file what can be said without loading it.

    Raises:
        OptionError: It is not there, cannot be read, or is no model.
    """
    try:
        with open(path, "rb") as file:
            begin = file.read(len(POINTER))
    except FileNotFoundError:
        raise OptionError(f"model={path!r}: there is no such file in {os.getcwd()}") from None
    except OSError as error:
        raise OptionError(f"model={path!r} cannot be read: {error.strerror}") from error
    if not begin:
        raise OptionError(f"model={path!r} is empty: was it written to its end?")
    if begin == POINTER:
        raise OptionError(f"model={path!r} is no model, but stands for one that git-lfs has not fetched; type: git lfs pull")
    if _extension(path) == ".skops" and not begin.startswith(b"PK"):  # it is a zip
        raise OptionError(f"model={path!r} is no file of skops: skops.io.dump makes them")


def _digest(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()
    except OSError as error:
        raise OptionError(f"model={path!r} cannot be read: {error.strerror}") from error


def _not_here() -> str:
    return f"{socket.gethostname()} has no such file. Workers load it themselves: put it where all of them see it"


def _imports_of(path: str) -> tuple[str, ...]:
    """What is imported to load a file: a pickle names its modules in its first bytes, unless it is compressed."""
    extension = _extension(path)
    if extension in (".skops", ".onnx"):
        return ("onnxruntime",) if extension == ".onnx" else ("skops", "sklearn")
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return "joblib", *{name.decode() for name in NAMES.findall(file.read(NAMES_WITHIN))}
    return ()


def _loaded(path: str) -> Any:
    if not os.path.exists(path):
        raise OptionError(_not_here())
    extension = _extension(path)
    if extension == ".skops":
        return _of_skops(path)
    if extension == ".onnx":
        return OnnxModel(path)
    try:
        import joblib
    except ImportError:
        if extension == ".joblib":
            raise _missing("joblib") from None
        import pickle

        with open(path, "rb") as file:
            return _usable(pickle.load(file))
    return _usable(_of_joblib(joblib, path))


def _of_joblib(joblib: Any, path: str) -> Any:
    """What `joblib.dump` or pickle wrote, under whatever extension. Its arrays are mapped where the file allows that."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = joblib.load(path, mmap_mode="r")
    for each in told:
        if "mmap_mode" in str(each.message):
            logging.getLogger("fourfold").info(
                "%s is compressed, so each worker has its own copy of the arrays: joblib.dump without compress= shares them",
                path,
            )
        else:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    return model


def _of_skops(path: str) -> Any:
    try:
        from skops import io
    except ImportError:
        raise _missing("skops") from None
    unknown = io.get_untrusted_types(file=path)
    if unknown:
        raise OptionError(
            f"skops does not trust {', '.join(unknown)}. If you do, load it yourself, and give what you have loaded: "
            f"predict(skops.io.load({path!r}, trusted={unknown!r}))"
        )
    return io.load(path)


def _missing(package: str) -> MissingExtra:
    line = "'fourfold[onnx]'" if package == "onnxruntime" else package
    return MissingExtra(f"this model needs the package {package}, which is not installed: pip install {line}")
