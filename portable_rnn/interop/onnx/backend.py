"""An implementation of ``onnx.backend.base.Backend``, so that ONNX's own tests run this library.

>>> import portable_rnn.interop.onnx.backend as backend
>>> backend.supports_device("CPU"), backend.supports_device("CUDA")
(True, False)

``onnx.backend.test.BackendTest(backend.GraphBackend, __name__)`` makes the tests. The array library is
`GraphBackend.library`, the default of `portable_rnn.backend` where that is None; a subclass sets another.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ...arrays import Backend as Library
from ...arrays import asarray, to_numpy
from ...arrays import backend as as_backend
from ...errors import InputError
from ..common import require
from .graph import Graph
from .reading import HostParams, graph_of, read_model

__all__ = ["GraphBackend", "Prepared", "is_compatible", "prepare", "run_model", "run_node", "supports_device"]

_Base: Any
_BaseRep: Any
try:
    _base = importlib.import_module("onnx.backend.base")
    _Base, _BaseRep = _base.Backend, _base.BackendRep
except ModuleNotFoundError:  # importable without onnx; a call then says what is missing
    _Base = _BaseRep = object


class Prepared(_BaseRep):  # type: ignore[misc]
    """A graph with its parameters on one array library.

    Attributes
    ----------
    graph : Graph
    library : portable_rnn.Backend
    """

    def __init__(self, graph: Graph, params: HostParams, library: Library) -> None:
        self.graph = graph
        self.library = library
        self._params = {name: asarray(value, library) for name, value in params.items()}

    def run(self, inputs: Any, **unused: Any) -> tuple[Any, ...]:
        """The graph's outputs as NumPy arrays, from inputs in order or by name."""
        given = inputs
        if not isinstance(inputs, dict):
            inputs = [inputs] if isinstance(inputs, np.ndarray) else inputs
            if len(inputs) != len(self.graph.inputs):
                raise InputError(f"expected {len(self.graph.inputs)} inputs, got {len(inputs)}")
            given = {port.name: x for port, x in zip(self.graph.inputs, inputs, strict=True)}
        placed = {name: asarray(x, self.library) for name, x in given.items()}
        found = self.graph.run(self._params, placed)
        return tuple(np.asarray(to_numpy(found[port.name])) for port in self.graph.outputs)


class GraphBackend(_Base):  # type: ignore[misc]
    """Runs ONNX models by this library's operators.

    Attributes
    ----------
    library : str, module or portable_rnn.Backend; or None
        As in `portable_rnn.backend`.
    """

    library: ClassVar[Any] = None

    @classmethod
    def is_compatible(cls, model: Any, device: str = "CPU", **unused: Any) -> bool:
        """Whether the model can be read and computes in one floating dtype, float32 or float64."""
        try:
            graph, params = graph_of(*_read(model))
        except InputError:
            return False
        floating = {port.dtype for port in (*graph.inputs, *graph.outputs) if port.floating}
        floating |= {value.dtype.name for value in params.values()}
        return cls.supports_device(device) and len(floating) <= 1 and "float16" not in floating

    @classmethod
    def prepare(cls, model: Any, device: str = "CPU", **unused: Any) -> Prepared:
        """Read a model once, to run it many times.

        Raises
        ------
        InputError
            The model can't be read, or the device is not there.
        """
        if not cls.supports_device(device):
            raise InputError(f"device {device!r} is not there: expected 'CPU'")
        graph, params = graph_of(*_read(model))
        floating = [*(p.dtype.name for p in params.values()), *(p.dtype for p in graph.inputs if p.floating)]
        return Prepared(graph, params, as_backend(cls.library, dtype="float64" if "float64" in floating else "float32"))

    @classmethod
    def run_model(cls, model: Any, inputs: Any, device: str = "CPU", **unused: Any) -> tuple[Any, ...]:
        """Run a model once."""
        return cls.prepare(model, device).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: Any,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[Any, tuple[int, ...]]] | None = None,
        **options: Any,
    ) -> tuple[Any, ...]:
        """Run a single node on arrays, in the newest operator set or in ``opset_version``."""
        onnx = require("onnx", "onnx", "ONNX's backend interface")
        helper = importlib.import_module("onnx.helper")
        names = [name for name in node.input if name]
        arrays = list(inputs.values()) if isinstance(inputs, dict) else list(inputs)
        kinds = [helper.np_dtype_to_tensor_dtype(np.asarray(a).dtype) for a in arrays]
        graph = helper.make_graph(
            [node],
            "node",
            [helper.make_tensor_value_info(n, k, None) for n, k in zip(names, kinds, strict=True)],
            [helper.make_tensor_value_info(n, kinds[0], None) for n in node.output if n],
        )
        version = options.get("opset_version", onnx.defs.onnx_opset_version())
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)])
        return cls.run_model(model, [np.asarray(a) for a in arrays], device)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether the device is there; another than the CPU is chosen by `library`."""
        return device.partition(":")[0] == "CPU"


def _read(model: Any) -> tuple[Any, Any, Any]:
    onnx = require("onnx", "onnx", "ONNX's backend interface")
    return (*read_model(model, onnx), onnx)


is_compatible = GraphBackend.is_compatible
prepare = GraphBackend.prepare
run_model = GraphBackend.run_model
run_node = GraphBackend.run_node
supports_device = GraphBackend.supports_device
