"""Models that are no estimators, with the methods of one: files of ONNX, and modules of torch."""

import os
import sys
from typing import Any

from fourfold.errors import MissingExtra, OptionError

NUMPY_OF = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
    "tensor(string)": "object",
}
"""The arrays that inputs of ONNX models take."""

PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
"""What may run a session: ONNX Runtime's packages for CPUs name one more, which asks a service on the network."""


class OnnxModel:
    """A session of ONNX Runtime: an input for all features, or one for each.

    It uses as many threads as the worker may: the runtime's own default is one for each core, in each process. And it tells
    nobody: from 1.32 on the runtime reports its use over the network, unless that is turned off before it is imported.

    Attributes:
        classes_: What `predict_proba` tells of, when the model says that; known after its first call.
    """

    def __init__(self, path: str) -> None:
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        try:
            import onnxruntime
        except ImportError:
            raise MissingExtra("this model needs onnxruntime, which is not installed: pip install 'fourfold[onnx]'") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "1").split(",")[0])
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads leave their core to others
        there = onnxruntime.get_available_providers()
        self._session = onnxruntime.InferenceSession(path, options, providers=[each for each in PROVIDERS if each in there])
        self._inputs = self._session.get_inputs()
        self._outputs = [each.name for each in self._session.get_outputs()]
        self.classes_: Any = None
        (first, *others) = self._inputs
        if others:
            self.feature_names_in_ = [each.name for each in self._inputs]
        elif len(first.shape) == 2 and isinstance(first.shape[1], int):
            self.n_features_in_ = first.shape[1]

    @property
    def takes_numbers(self) -> bool:
        """Whether no input takes texts."""
        return all(each.type != "tensor(string)" for each in self._inputs)

    def predict(self, features: Any) -> Any:
        """The first output."""
        (found,) = self._session.run(self._outputs[:1], self._fed(features))
        return found[:, 0] if found.ndim == 2 and found.shape[1] == 1 else found

    def predict_proba(self, features: Any) -> Any:
        """The second output, as converters of classifiers make it: an array, or a dict by class for each row."""
        import numpy as np

        if len(self._outputs) < 2:
            raise OptionError(
                f"method='predict_proba': the model has the one output {self._outputs[0]!r}: leave method= out",
                is_of_plan=True,
            )
        (found,) = self._session.run(self._outputs[1:2], self._fed(features))
        if not isinstance(found, list):
            return found
        self.classes_ = np.array([*found[0]])
        return np.array([[*row.values()] for row in found])

    def _fed(self, features: Any) -> dict[str, Any]:
        import numpy as np

        if len(self._inputs) == 1:
            (only,) = self._inputs
            values = np.asarray(features, NUMPY_OF.get(only.type))
            return {only.name: values.reshape(-1, 1) if values.ndim == 1 else values}
        return {each.name: _input(features[each.name], each) for each in self._inputs}


def _input(column: Any, wanted: Any) -> Any:
    values = column.to_numpy(NUMPY_OF.get(wanted.type))
    return values.reshape(-1, 1) if len(wanted.shape) == 2 else values


def is_torch(model: Any) -> bool:
    """Whether it is a module of torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


class TorchModule:
    """A module of torch: it takes all features as one tensor of float32, where it is, and runs without gradients.

    One that is being trained is copied: to put it into evaluation mode would turn dropout off for its owner.
    """

    takes_numbers = True

    def __init__(self, module: Any) -> None:
        self._module = module
        self._is_ready = False

    def predict(self, features: Any) -> Any:
        """What it gives: a tensor with a row for each row, or a dict of them."""
        import numpy as np
        import torch

        if not self._is_ready:
            self._make_ready()
        where = next(self._module.parameters(), torch.empty(0)).device
        rows = torch.from_numpy(np.ascontiguousarray(features, np.float32)).to(where)
        with torch.inference_mode():
            found = self._module(rows)
        if isinstance(found, dict):
            return {name: _values(each) for name, each in found.items()}
        if not isinstance(found, torch.Tensor):
            raise TypeError(f"the module gave a {type(found).__qualname__}: it must give a tensor, or a dict of tensors")
        return _values(found)

    def _make_ready(self) -> None:
        import copy

        if any(each.training for each in self._module.modules()):
            self._module = copy.deepcopy(self._module).eval()
        self._is_ready = True


def _values(tensor: Any) -> Any:
    array = tensor.float().cpu().numpy() if str(tensor.dtype) == "torch.bfloat16" else tensor.cpu().numpy()
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
