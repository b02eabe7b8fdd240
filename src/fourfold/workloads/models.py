"""What a model is: a fitted estimator, a file that holds one, or a class; and what can be known of it before it runs.

"model.joblib"   "model.skops"   "model.onnx"      loaded once per worker; arrays of joblib files are mapped, not copied
a fitted estimator, Pipeline, module of torch      travels with the plan, its arrays shared
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fourfold.errors import MissingExtra, OptionError, OptionTypeError
from fourfold.execute.chunk import is_worker_class

LOADERS = (".joblib", ".pkl", ".pickle", ".skops", ".onnx")


class Model:
    """A model, before it is loaded.

    Args:
        what: A path, an estimator, a module of torch, or a class with `__call__`.
        init: Arguments of the class.

    Raises:
        OptionError: There is no such file, or nobody can tell what it is.
    """

    def __init__(self, what: Any, init: tuple[Any, ...] = ()) -> None:
        self.what, self.init = what, init
        self.is_file = isinstance(what, str | os.PathLike)
        self.is_class = is_worker_class(what)
        if self.is_file:
            _check_file(os.fspath(what))
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

    def load(self) -> Any:
        """The estimator, session, module or instance, in a worker.

        Raises:
            Exception: Whatever the file or class raises.
        """
        if self.is_class:
            return self.what(*self.init)
        return _loaded(os.fspath(self.what)) if self.is_file else self.what

    def known(self) -> Any:
        """The estimator when it is here already: what can be checked before anything runs; else None."""
        return None if self.is_file or self.is_class else self.what


def _named(what: Any) -> str:
    return f"a {type(what).__module__}.{type(what).__qualname__}"


def _check_file(path: str) -> None:
    if not os.path.isfile(path):
        raise OptionError(f"model={path!r}: there is no such file in {os.getcwd()}")
    if Path(path).suffix.lower() not in LOADERS:
        raise OptionError(f"model={path!r}: cannot tell what it is from its extension; known are {' '.join(LOADERS)}")


def _loaded(path: str) -> Any:
    extension = Path(path).suffix.lower()
    if extension == ".joblib":
        joblib = _package("joblib", "joblib")
        return joblib.load(path, mmap_mode="r")
    if extension == ".skops":
        return _package("skops.io", "skops").load(path)
    if extension == ".onnx":
        return OnnxModel(path)
    import pickle

    with open(path, "rb") as file:
        return pickle.load(file)


def _package(module: str, package: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(f"this model needs the package {package}, which is not installed: pip install {package}") from error


class OnnxModel:
    """A session of ONNX Runtime that takes one array of features, or one array per input name."""

    def __init__(self, path: str) -> None:
        runtime = _package("onnxruntime", "onnxruntime")
        options = runtime.SessionOptions()
        # Its default is a thread for each physical core in each process.
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
        options.inter_op_num_threads = 1
        self._session = runtime.InferenceSession(path, options, providers=runtime.get_available_providers())
        self._inputs = self._session.get_inputs()

    def predict(self, features: Any) -> Any:
        """The first output."""
        return self._session.run(None, self._fed(features))[0]

    def predict_proba(self, features: Any) -> Any:
        """The second output, as converters of scikit-learn models make it."""
        import numpy as np

        found = self._session.run(None, self._fed(features))[1]
        return np.array([list(row.values()) for row in found]) if isinstance(found, list) else found

    def _fed(self, features: Any) -> dict[str, Any]:
        import numpy as np

        kinds = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(int64)": np.int64}
        if len(self._inputs) == 1:
            (only,) = self._inputs
            return {only.name: np.asarray(features, dtype=kinds.get(only.type))}
        return {each.name: np.asarray(features[each.name], kinds.get(each.type)).reshape(-1, 1) for each in self._inputs}


def feature_names(estimator: Any) -> list[str] | None:
    """The columns that an estimator was fitted on; None when it does not say."""
    names = getattr(estimator, "feature_names_in_", None)
    if names is None and hasattr(estimator, "feature_name_"):  # LightGBM
        names = estimator.feature_name_
    return None if names is None else [str(name) for name in names]


def check_features(estimator: Any, schema: Any, what: str) -> None:
    """Check that a table has what an estimator was fitted on.

    Raises:
        OptionError: A column is missing, or it is a text where the estimator takes numbers only.
    """
    import pyarrow as pa

    names = feature_names(estimator)
    if names is None:
        n_features = getattr(estimator, "n_features_in_", None)
        if n_features is not None and n_features != len(schema.names):
            raise OptionError(
                f"{what} was fitted on {n_features} features without names, and the table has {len(schema.names)} columns "
                f"({', '.join(schema.names[:8])}…): select() those that it takes, in its order"
            )
        return
    missing = [name for name in names if name not in schema.names]
    if missing:
        raise OptionError(
            f"{what} was fitted on {len(names)} features, of which {_listed(missing)} {'is' if len(missing) == 1 else 'are'} "
            f"not in the table. Columns: {', '.join(schema.names)}"
        )
    if hasattr(estimator, "steps") or hasattr(estimator, "transformers"):
        return  # they may take texts
    for name in names:
        type_ = schema.field(name).type
        is_number = not (pa.types.is_string(type_) or pa.types.is_binary(type_) or pa.types.is_list(type_))
        if not is_number and _takes_numbers_only(estimator):
            raise OptionError(f"{what} takes numbers, and column {name!r} is {type_}")


def _takes_numbers_only(estimator: Any) -> bool:
    """Classifiers and regressors of scikit-learn do; transformers, like encoders, need not."""
    return hasattr(estimator, "predict") and not hasattr(estimator, "transform")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:5]))
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
