"""From Keras 3, on any of its backends: layers, Sequential and linear functional models, .keras files."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from ..arrays import Array, Backend
from ..errors import ConversionError, InputError
from ..layers import Flip, Layer, Masked, Mean
from ..models import Model
from .common import Piece, Source, assemble, first_line, model_of, name_of_type, refuse_not_finite
from .keras_file import load_keras_file
from .keras_layers import Step, host, import_keras, recurrent_layers, steps_of
from .selftest import Host, Trial, check_chain, check_piece, coarsest, passed

__all__ = ["from_keras", "working_dtype"]

# The largest input that a source is tried on
_MAX_STEPS, _MAX_ENTRIES = 20_000, 2**22


def from_keras(
    source: Any,
    *,
    backend: str | ModuleType | Array | Backend = "numpy",
    dtype: Any = None,
) -> Model:
    """A Keras 3 layer, model or .keras file as a model.

    `SimpleRNN`, `LSTM`, `GRU` (``reset_after`` both ways, ``go_backwards``, activations) and `RNN` of their cells,
    `Bidirectional`, `Masking`, `Dense`, `Embedding` (``mask_zero`` too), `TimeDistributed` of Dense and activations,
    `Dropout`, `SpatialDropout1D`, `GlobalAveragePooling1D`, `GlobalMaxPooling1D`, activations; in a `Sequential` or a
    functional model whose layers stand in one line. Keras' one bias becomes ``bias_ih``, ``bias_hh`` is zero.

    Parameters
    ----------
    source : keras.Layer, keras.Model or path of a .keras file
        Built: called once, or with an `Input`. A file is loaded with ``safe_mode=True``.
    backend, dtype : as in `Model`
        float64 stays float64 and all else becomes float32 where `dtype` is left out.

    Returns
    -------
    Model
        Its metadata says where it came from and how well the outputs agreed.

    Raises
    ------
    InputError
        A layer or option that there is no counterpart for, a branched model, or a damaged file.
    ConversionError
        The result does not give the source's outputs.
    MissingDependencyError
        Keras is not installed.

    Notes
    -----
    The model starts from zero states: what a ``stateful`` layer has kept is not carried over. A recurrent layer's
    ``dropout`` becomes a `SharedDropout` before it, which both directions of a `Bidirectional` then share.

    Examples
    --------
    ::

        layers = [keras.Input((None, 3)), keras.layers.GRU(8), keras.layers.Dense(2)]
        model = prnn.from_keras(keras.Sequential(layers))
        model.network  # Sequential(GRU(3, 8), Last(), Linear(8, 2))
    """
    keras = import_keras("from_keras")
    if isinstance(source, (str, os.PathLike)):
        source = load_keras_file(keras, Path(source))
    if not isinstance(source, keras.layers.Layer):
        raise InputError(f"from_keras takes a Keras layer, model or path, got {name_of_type(source)}")
    notes: list[str] = []
    steps = [step for layer in _line(keras, source) for step in steps_of(keras, layer, notes)]
    pieces = _grouped(steps)
    network, params = assemble(pieces)
    refuse_not_finite(params)
    stateful = [r for step in steps for r in recurrent_layers(keras, step.source) if r.stateful]
    trial = _trial(keras, source, network, stateful, notes)
    if any(step.masks is not None for step in steps) and any(isinstance(piece.layer, Mean) for piece in _inner(steps)):
        trial = replace(trial, empty_rows=False)
        notes.append("the mean of a row that is masked throughout is zero here, not a number in Keras")
    with _from_zero_states(keras, stateful) as fresh:
        computed, worst = _checked(keras, source, steps, pieces, trial, fresh)
    kind = type(source).__name__
    origin = Source("keras", f"{keras.__version__} on {keras.backend.backend()}", kind, tuple(dict.fromkeys(notes)))
    return model_of(pieces, origin, passed(worst, computed, trial), backend, dtype)


def _inner(steps: Sequence[Step]) -> list[Piece]:
    return [piece for step in steps for piece in step.pieces]


def _checked(
    keras: Any, source: Any, steps: Sequence[Step], pieces: Sequence[Piece], trial: Trial, fresh: Callable[[], None]
) -> tuple[str, float]:
    """The dtype that the source computes in, and the largest relative difference."""
    dtypes: set[str] = {step.source.compute_dtype for step in steps}
    run = _runner(keras, source, fresh, dtypes)
    computed = working_dtype(keras, dtypes)
    try:
        worst = check_chain(pieces, run, computed, trial)
    except ConversionError:
        for step in steps:  # the first that differs alone says where it is
            if step.pieces and step.masks is None:
                alone, params = assemble(step.pieces)
                piece = Piece(step.name, alone, params, _runner(keras, step.source, fresh, set()))
                check_piece(piece, computed, trial=trial)
        raise
    return computed, worst


def _trial(keras: Any, source: Any, network: Layer, stateful: Sequence[Any], notes: list[str]) -> Trial:
    """Input of the shape that the source takes; what it fixes and the model doesn't is noted."""
    shape = tuple(source.inputs[0].shape) if isinstance(source, keras.Model) else ()
    kept = [layer.states[0].shape[0] for layer in stateful if layer.states]
    batch = next((n for n in (*shape[:1], *kept) if n is not None), None)
    trial = Trial() if batch is None else Trial(batch=int(batch))
    if shape:
        if len(shape) != (2 if network.takes_integers else len(shape)) or not 2 <= len(shape) <= 3:
            raise InputError(
                f"model {source.name!r}: expected input of shape (batch, time, features), (batch, features) or, for an "
                f"Embedding, (batch, time), got {shape}"
            )
        if network.takes_integers or len(shape) == 3:
            if shape[1] is not None:
                trial = replace(trial, lengths=(int(shape[1]),))
                notes.append(f"the source takes {shape[1]} time steps, the model any number")
        elif not network.needs_time:
            trial = replace(trial, lengths=(None,))
        if not network.takes_integers and shape[-1] is not None:
            trial = replace(trial, features=int(shape[-1]))
    longest = max(n or 1 for n in trial.lengths)
    if longest > _MAX_STEPS or math.prod((trial.batch, longest, trial.features or 1)) > _MAX_ENTRIES:
        raise InputError(
            f"{name_of_type(source)} {source.name!r}: expected input of at most {_MAX_STEPS:,} steps and "
            f"{_MAX_ENTRIES:,} entries to compare outputs on, got {shape}: build it with open batch and time axes, "
            "such as Input((None, features))"
        )
    return trial


@contextlib.contextmanager
def _from_zero_states(keras: Any, stateful: Sequence[Any]) -> Iterator[Callable[[], None]]:
    """A function that sets the states of stateful layers to zero; at the end they are what they were."""
    kept = [(variable, host(keras, variable)) for layer in stateful for variable in layer.states or ()]

    def fresh() -> None:
        for layer in stateful:
            layer.reset_state()

    try:
        yield fresh
    finally:
        for variable, value in kept:
            variable.assign(value)


def _runner(keras: Any, layer: Any, fresh: Callable[[], None], dtypes: set[str]) -> Callable[[Host], Host]:
    """A layer or model, from zero states, as a function of NumPy arrays; the dtypes of what it gives are added."""

    def run(x: Host) -> Host:
        kind = "int32" if x.dtype.kind == "i" else layer.compute_dtype
        if isinstance(layer, keras.Model) and x.dtype.kind == "f":
            kind = layer.inputs[0].dtype
        fresh()
        try:
            y = layer(keras.ops.convert_to_tensor(x, dtype=kind), training=False)
        except Exception as error:  # each backend of Keras has its own
            raise InputError(
                f"{name_of_type(layer)} {layer.name!r}: expected a source that runs on input of shape {x.shape}, got "
                f"{first_line(error)}"
            ) from error
        found = host(keras, y[0] if isinstance(y, (tuple, list)) else y)
        dtypes.add(found.dtype.name)
        return found

    return run


def working_dtype(keras: Any, dtypes: Collection[str]) -> str:
    """The dtype that decides how exact Keras is: on most of its backends even float64 is computed in float32."""
    return coarsest({keras.backend.result_type(dtype, dtype) for dtype in dtypes})


# ---------------------------------------------------------------------- the layers in a line


def _line(keras: Any, source: Any) -> list[Any]:
    """The layers in the order that they run."""
    if isinstance(source, keras.layers.InputLayer):
        return []
    if isinstance(source, keras.Sequential):
        return [layer for inner in source.layers for layer in _line(keras, inner)]
    if isinstance(source, keras.Model):
        if not hasattr(source, "outputs"):
            raise InputError(
                f"{name_of_type(source)} {source.name!r} is a subclassed model, whose call can't be read: "
                "convert its layers one by one, or build it as a Sequential or functional model"
            )
        return [layer for inner in _functional(keras, source) for layer in _line(keras, inner)]
    return [source]


def _functional(keras: Any, model: Any) -> list[Any]:
    """The layers of a functional model from its input to its output; it must have one line."""
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise InputError(
            f"model {model.name!r} has {len(model.inputs)} inputs and {len(model.outputs)} outputs: expected one each"
        )
    tensor, layers = model.outputs[0], list[Any]()
    while True:
        operation, index, _ = tensor._keras_history
        if isinstance(operation, keras.layers.InputLayer):
            return layers[::-1]
        node = operation._inbound_nodes[index]
        tensors = [t for t in node.input_tensors if t is not node.arguments.kwargs.get("mask")]
        if len(tensors) != 1 or not isinstance(operation, keras.layers.Layer):
            what = f"{len(tensors)} inputs" if len(tensors) != 1 else "no layer"
            raise InputError(
                f"{operation.name!r} of model {model.name!r} has {what}: expected layers that stand in one line"
            )
        if operation in layers:
            raise InputError(f"layer {operation.name!r} of model {model.name!r} is used twice: its weights are shared")
        layers.append(operation)
        tensor = tensors[0]


# ---------------------------------------------------------------------- masks


def _grouped(steps: Sequence[Step]) -> list[Piece]:
    """The pieces, with those between a mask's origin and the last layer that heeds it inside a `Masked`."""
    origin = next((k for k, step in enumerate(steps) if step.masks is not None), None)
    if origin is None:
        return _inner(steps)
    if any(step.pieces for step in steps[:origin]) and steps[origin].pieces:
        raise InputError(f"{steps[origin].name!r} masks, but is not the first layer")
    if any(step.pieces for step in steps[:origin]):
        raise InputError(f"Masking {steps[origin].name!r} must be the first layer, to see the data itself")
    behind = steps[origin + 1 :]
    reach = next((k + 1 for k, step in enumerate(behind) if step.ends), len(behind))
    heeding = [k for k in range(reach) if behind[k].heeds]
    if any(step.masks is not None for step in behind[:reach]):
        raise InputError("two layers mask, one behind the other: one Masked layer can't be both")
    if not heeding:
        if steps[origin].pieces:  # an Embedding: nothing looks at its mask
            return _inner(steps)
        raise InputError(f"Masking {steps[origin].name!r} is not followed by a layer that leaves masked steps out")
    last = heeding[-1]
    turned = [step for step in behind[: last + 1] if not step.ends and _flips(step)]
    first: list[Piece] = []
    if turned:
        if len(heeding) > 1 or steps[origin].pieces:
            raise InputError(
                f"{turned[0].name!r} returns masked sequences backwards, whose mask Keras does not turn around for the "
                "layers behind it: expected it to be the only layer that heeds a Masking"
            )
        # what goes backwards and repeats its outputs in that order is what goes forwards over turned input
        first = [Piece(f"{turned[0].name} turned", Flip(), {})]
        behind = [*behind[:last], _forwards(behind[last]), *behind[last + 1 :]]
    network, params = assemble([*steps[origin].pieces, *_inner(behind[: last + 1])])
    value = steps[origin].masks
    assert value is not None
    wrapped = Piece(steps[origin].name, Masked(network, value, behind[last].hold), params)
    return [*first, wrapped, *_inner(behind[last + 1 :])]


def _flips(step: Step) -> bool:
    return any(isinstance(piece.layer, Flip) for piece in step.pieces)


def _forwards(step: Step) -> Step:
    """A step that goes backwards, forwards."""
    pieces = [piece for piece in step.pieces if not isinstance(piece.layer, Flip)]
    turned: Any = pieces[-1].layer
    return replace(step, pieces=[*pieces[:-1], replace(pieces[-1], layer=replace(turned, reverse=False))])
