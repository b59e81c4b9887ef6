"""A network with its parameters on one array library: train, predict, save, move."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from ..arrays import (
    MODEL,
    Array,
    Backend,
    Lengths,
    Marks,
    Params,
    State,
    apart,
    asarray,
    checked_array,
    checked_data,
    checked_state,
    checked_targets,
    copied,
    flag,
    is_array,
    on_their_device,
    optional,
    placed,
    positive,
    size,
    time_marks,
    to_numpy,
    tree_to_numpy,
)
from ..arrays import backend as as_backend
from ..errors import InputError, NonFiniteError
from ..execution import forward_only, jit
from ..layers import Layer, check_streams, random_generator
from ..training import (
    Batches,
    Buckets,
    Data,
    Epoch,
    History,
    Loss,
    Optimizer,
    Progress,
    TrainingRun,
    has_steps,
    has_target_steps,
    limited,
    loss_and_gradients,
    loss_function,
    loss_name,
    loss_value,
    notify,
    optimizer_of,
    run_callbacks,
)
from .checkpoint import read_checkpoint, write_checkpoint
from .checks import check_callbacks, check_classes, check_finite, check_truncation

__all__ = ["Model", "load"]


class Model:
    """A network and its parameters, on one array library, device and dtype.

    Arrays in and out are that library's. Arrays of another one are an error that names the call which moves them
    (`portable_rnn.asarray`); nested lists of numbers are taken as they are.

    Parameters
    ----------
    network : Layer
    backend : str, module, array or Backend
        As in `portable_rnn.backend`.
    dtype : "float32" or "float64", optional
        float32 when left out, or the Backend's.
    seed : int
        Initial weights, batch order and dropout masks. The same seed gives the same run on every library.

    Attributes
    ----------
    network : Layer
    backend : Backend
    params : dict of str to array
        Named and shaped as torch's state dict.
    metadata : dict of str to str
        Saved and loaded with the model; free for the caller's use.

    Examples
    --------
    >>> import numpy as np, portable_rnn as prnn
    >>> model = prnn.Model(prnn.Sequential(prnn.GRU(1, 8), prnn.Last(), prnn.Linear(8, 1)), seed=0)
    >>> x = np.random.default_rng(0).random((64, 10, 1), dtype="float32")
    >>> history = model.fit(x, x.mean(axis=1), epochs=5, progress=False)
    >>> history.loss[-1] < history.loss[0], model.predict(x).shape
    (True, (64, 1))
    """

    def __init__(
        self,
        network: Layer,
        backend: str | ModuleType | Array | Backend | None = "numpy",
        dtype: Any = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(network, Layer):
            raise InputError(f"network must be a layer such as prnn.LSTM(1, 8), got {type(network).__name__}")
        self.network = network
        self.backend = as_backend(backend, dtype=dtype)
        self.seed = seed
        self.params = network.init(seed, self.backend)
        self.metadata: dict[str, str] = {}
        self.loss: Loss = loss_function("mse")
        self._buckets = Buckets()

    def __repr__(self) -> str:
        count = sum(int(np.prod(shape)) for shape in self.network.parameter_shapes().values())
        return f"Model({self.network}, {self.backend}, {count:,} parameters)"

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"params": tree_to_numpy(self.params)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, params=placed(state["params"], state["backend"]))

    # ------------------------------------------------------------------ training

    @on_their_device
    def fit(
        self,
        x: Array | Sequence[Array],
        y: Array | Sequence[Array],
        *,
        loss: str | Loss = "mse",
        optimizer: str | Optimizer = "adam",
        epochs: int = 10,
        batch_size: int = 32,
        lengths: Lengths = None,
        resets: Any = None,
        validation_data: tuple[Any, ...] | None = None,
        clip_norm: float | None = None,
        callbacks: Sequence[Any] = (),
        progress: bool = True,
        shuffle: bool = True,
        seed: int | None = None,
        tbptt: int | None = None,
        stateful: bool = False,
        memory_limit: int | str | None = None,
    ) -> History:
        """Train the parameters.

        Parameters
        ----------
        x : array (N, T, F), or list of N sequences (T_i, F)
            An array, or a list of arrays, is of the model's library and dtype: ``prnn.asarray(x, model.backend)`` moves
            and converts either. Nested lists and tables (a pandas DataFrame) have no library yet and are taken as they
            are.
        y : array, or list of N sequences (T_i, ...)
            Targets (N, ...), or (N, T, ...) where the network keeps the time axis; then also a list with one target for
            each step, such as labels (T_i,).
        loss : str or callable
            "mse", "mae", "huber", "cross_entropy", "binary_cross_entropy", or as those in `portable_rnn.losses`.
        optimizer : str or Optimizer
            Such as ``prnn.adam(1e-3)``.
        epochs, batch_size : int
        lengths : N integers, optional
            Valid steps of each row of x.
        resets : array (N, T) of booleans, optional
            Steps that start from a zero state: several sequences one after another in one row.
        validation_data : (x, y) or (x, y, lengths), optional
        clip_norm : float, optional
            Largest global norm of the gradient.
        callbacks : sequence
            Each is called with an `Epoch` after every epoch and may return True to stop; see `EarlyStopping`.
        progress : bool
            Show a progress bar (tqdm, extra ``[progress]``), or without tqdm a line for each epoch.
        shuffle : bool
            Draw the order of the rows anew for each epoch.
        seed : int, optional
            Of batch order and dropout masks; the model's when left out.
        tbptt : int, optional
            Truncated backpropagation through time: sequences are cut into pieces of so many steps, with an update for
            each; the state is handed on, the gradient is not. Needs targets for every step.
        stateful : bool
            Each batch starts from the state at the end of the batch before, row by row, so that row i of batch k goes
            on in row i of batch k + 1. Needs ``shuffle=False`` and batches of equal size.
        memory_limit : int or str, optional
            Bytes that an update may take, or such as "512MB": long sequences are then cut into segments that the
            backward pass runs again. The gradients stay exact.

        Returns
        -------
        History

        Raises
        ------
        InputError
            The data don't fit the network or hold NaN or infinity.
        BackendError
            Arrays of another library, device or dtype than the model.
        NonFiniteError
            The loss became NaN or infinite; the model keeps the last good weights.
        """
        function = loss_function(loss)
        epochs, batch_size = size("epochs", epochs), size("batch_size", batch_size)
        tbptt, clip_norm = optional(size)("tbptt", tbptt), optional(positive)("clip_norm", clip_norm)
        shuffle, stateful = flag("shuffle", shuffle), flag("stateful", stateful)
        progress = flag("progress", progress)
        check_callbacks(callbacks)
        if not self.params:
            raise InputError(f"{self.network} has no parameters to train: expected a layer such as prnn.LSTM in it")
        data = self.checked_data(x, y, lengths, resets, function)
        validation = None if validation_data is None else self._validation(validation_data, function)
        check_truncation(self.network, tbptt, stateful, shuffle, data.x.shape[0], batch_size)
        shape = (min(batch_size, data.x.shape[0]), *(data.x.shape[1:2] if tbptt is None else (tbptt,)))
        network = limited(self.network, shape, self.backend.dtype_name, memory_limit)
        history = History()
        pieces = -(-data.x.shape[1] // tbptt) if tbptt else 1
        cut = self._batches(data, batch_size, function)
        run = TrainingRun(
            network,
            self.backend,
            function,
            optimizer_of(optimizer),
            clip_norm,
            batch_size,
            shuffle,
            tbptt,
            stateful,
            random_generator(self.seed if seed is None else seed),
            history,
            Progress(progress, epochs, pieces * -(-data.x.shape[0] // batch_size)),
            self.params,
        )
        notify(callbacks, "start", self)
        try:
            for number in range(1, epochs + 1):
                started = time.perf_counter()
                # an overflow is found in the loss, on every library alike, so NumPy need not warn of it
                with np.errstate(over="ignore", invalid="ignore"):
                    loss_of_epoch = run.epoch(cut)
                self.params, self.loss = run.params, function
                history.seconds.append(time.perf_counter() - started)
                history.loss.append(loss_of_epoch)
                if validation is not None:
                    history.val_loss.append(self._evaluate(validation, batch_size=256))
                run.progress.epoch(number, history)
                history.stopped = run_callbacks(callbacks, Epoch(number, self, history))
                if history.stopped:
                    break
        except NonFiniteError as error:
            self.params = error.good_params
            raise
        finally:
            run.progress.close()
        notify(callbacks, "finish", self)
        return history

    @on_their_device
    def loss_and_grad(
        self,
        x: Array | Sequence[Array],
        y: Array | Sequence[Array],
        *,
        loss: str | Loss | None = None,
        lengths: Lengths = None,
        resets: Any = None,
    ) -> tuple[Array, Params]:
        """The loss and its gradient with respect to every parameter, without dropout.

        Parameters
        ----------
        x, y, lengths, resets
            As in `fit`.
        loss : optional
            The last fit's when left out, or "mse".

        Returns
        -------
        loss : array ()
        gradients : dict of str to array, as `params`
        """
        function = self.loss if loss is None else loss_function(loss)
        data = self.checked_data(x, y, lengths, resets, function)
        (piece,) = self._batches(data, None, function).in_order()
        run = jit(self.backend.xp, loss_and_gradients, static=("network", "loss"))
        found: tuple[Array, Params] = run(self.params, piece.batch, network=self.network, loss=function)
        return found

    # ------------------------------------------------------------------ using

    @on_their_device
    def predict(
        self,
        x: Array | Sequence[Array],
        *,
        lengths: Lengths = None,
        resets: Any = None,
        batch_size: int | None = None,
    ) -> Array:
        """The network's output, without dropout.

        Parameters
        ----------
        x : array (N, T, F), or list of N sequences (T_i, F)
            As in `fit`.
        lengths : N integers, optional
        resets : array (N, T) of booleans, optional
        batch_size : int, optional
            Rows to compute at a time; all at once when left out.

        Returns
        -------
        array (N, ...) of the model's library
        """
        run = jit(self.backend.xp, _predict, static=("network",))
        data = self._data(x, lengths, resets)
        cut = self._batches(data, batch_size)
        y = cut.joined(
            [
                cut.output(run(self.params, piece.batch.x, piece.batch.marks, network=self.network), piece)
                for piece in cut.in_order()
            ]
        )
        return apart(y, data.x)

    @on_their_device
    def evaluate(
        self,
        x: Array | Sequence[Array],
        y: Array | Sequence[Array],
        *,
        lengths: Lengths = None,
        resets: Any = None,
        loss: str | Loss | None = None,
        batch_size: int = 256,
    ) -> float:
        """The mean loss over data, without dropout; `loss` is the last fit's when left out."""
        function = self.loss if loss is None else loss_function(loss)
        data = self.checked_data(x, y, lengths, resets, function)
        return self._evaluate(data, batch_size=batch_size, loss=function)

    @on_their_device
    def step(self, x_t: Array, state: State = None) -> tuple[Array, State]:
        """One time step of a stream.

        Parameters
        ----------
        x_t : array (B, F)
        state : optional
            What the step before returned; None to start.

        Returns
        -------
        y_t, state

        Raises
        ------
        InputError
            A bidirectional layer or a pooling over time needs the whole sequence.
        """
        check_streams(self.network)
        if not is_array(x_t):
            x_t = asarray(x_t, self.backend, dtype=None if self.network.takes_integers else self.backend.dtype_name)
        x_t = checked_array("x_t", x_t, self.backend, MODEL)
        if x_t.ndim != (1 if self.network.takes_integers else 2):
            raise InputError(
                "x_t must be one time step of shape (batch, features), or (batch,) integers for an Embedding, "
                f"got shape {tuple(x_t.shape)}"
            )
        x = x_t[:, None, ...]
        self.network.check_input(x, self.backend.xp)
        check_finite("x_t", x_t, None)
        if self.network.takes_integers:
            self.network.check_values(to_numpy(x_t), None)
        state = checked_state(state, self.backend, MODEL)
        self.network.check_state(state, x.shape[0])
        run = jit(self.backend.xp, _step, static=("network",))
        y_t, new = run(self.params, x, state, network=self.network)
        return copied(y_t), apart(new, state)  # y_t may be a part of the state

    def to(self, backend: str | ModuleType | Array | Backend, device: Any = None, dtype: Any = None) -> Model:
        """A copy of the model on another library, device or dtype (this model's dtype when left out)."""
        same = self.backend.dtype_name if dtype is None and not isinstance(backend, Backend) else dtype
        return _model(
            self.network,
            {name: np.array(to_numpy(p)) for name, p in self.params.items()},
            as_backend(backend, device, same),
            self.metadata,
            self.loss,
            self.seed,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to one safetensors file; an existing file is replaced only by a whole one.

        The file opens in torch as a plain state dict; its metadata says what network the arrays belong to.
        """
        host = {name: to_numpy(p) for name, p in self.params.items()}
        write_checkpoint(path, self.network, host, self.metadata, loss=loss_name(self.loss))

    # ------------------------------------------------------------------ inside

    def _data(self, x: Any, lengths: Lengths, resets: Any) -> Data:
        """x padded, resets, and the lengths on the host, all checked."""
        x, lengths = checked_data(x, lengths, self.backend, integers=self.network.takes_integers)
        self.network.check_input(x, self.backend.xp)
        if (lengths is not None or resets is not None) and not has_steps(self.network, x):
            raise InputError(f"lengths and resets need a time axis, but x has shape {tuple(x.shape)}")
        marks = time_marks(lengths, resets, x)
        host_lengths = None if marks.lengths is None else to_numpy(marks.lengths)
        check_finite("x", x, host_lengths)
        if self.network.takes_integers:
            self.network.check_values(to_numpy(x), host_lengths)
        return Data(x, None, host_lengths, marks.resets)

    def checked_data(
        self, x: Any, y: Any, lengths: Lengths = None, resets: Any = None, loss: Loss | None = None
    ) -> Data:
        """x padded, y, resets, and the lengths on the host, all checked as `fit` does; the classes for this loss."""
        data = self._data(x, lengths, resets)
        keeps_steps = self.network.keeps_time and has_steps(self.network, data.x)
        steps = data.x.shape[1] if keeps_steps else None
        y = checked_targets(y, data.x.shape[0], self.backend, steps, data.lengths)
        ends = data.lengths if has_target_steps(self.network, data.x, y) else None
        check_finite("y", y, ends)
        check_classes(self.network, loss, y, ends)
        return data._replace(y=y)

    def _validation(self, data: tuple[Any, ...], loss: Loss) -> Data:
        if not isinstance(data, (tuple, list)) or len(data) not in (2, 3):
            raise InputError("validation_data must be (x, y) or (x, y, lengths)")
        return self.checked_data(data[0], data[1], data[2] if len(data) == 3 else None, None, loss)

    def _batches(self, data: Data, batch_size: int | None, loss: Loss | None = None) -> Batches:
        """To cut `batch_size` rows at a time, or all at once, to compute this loss with."""
        rows = optional(size)("batch_size", batch_size)
        return Batches(data, self.network, self.backend, self._buckets, rows, loss)

    def _evaluate(self, data: Data, *, batch_size: int, loss: Loss | None = None) -> float:
        function = self.loss if loss is None else loss
        run = jit(self.backend.xp, loss_value, static=("network", "loss"))
        total = weight = 0.0
        for piece in self._batches(data, batch_size, function).in_order():
            value = run(self.params, piece.batch, network=self.network, loss=function)
            total += float(to_numpy(value)) * piece.weight
            weight += piece.weight
        return total / max(weight, 1.0)


def load(
    path: str | os.PathLike[str],
    backend: str | ModuleType | Array | Backend = "numpy",
    dtype: Any = None,
    *,
    check_finite: bool = True,
) -> Model:
    """Load a model that `Model.save` wrote.

    Parameters
    ----------
    path : path
    backend : as in `portable_rnn.backend`
    dtype : optional
        The file's when left out.
    check_finite : bool
        Whether a NaN or an infinity among the weights is an error. With False such a model is loaded as it is.

    Raises
    ------
    InputError
        No such file, cut short, of another kind, or of a newer format; damaged metadata; weights that are not finite,
        by name.
    """
    network, params, metadata, passport = read_checkpoint(path, finite=check_finite)
    saved = next(iter(params.values())).dtype.name if params else "float32"
    wanted = saved if dtype is None and not isinstance(backend, Backend) else dtype
    try:
        loss = loss_function(passport.get("loss", "mse"))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return _model(network, params, as_backend(backend, dtype=wanted), metadata, loss, seed=0)


def _model(
    network: Layer,
    host_params: dict[str, np.ndarray[Any, Any]],
    backend: Backend,
    metadata: dict[str, str],
    loss: Loss,
    seed: int,
) -> Model:
    model = Model.__new__(Model)
    model.network, model.backend, model.seed = network, backend, seed
    model.params = {name: asarray(p, backend) for name, p in host_params.items()}
    model.metadata, model.loss = dict(metadata), loss
    model._buckets = Buckets()
    return model


def _predict(params: Params, x: Array, marks: Marks, *, network: Layer) -> Array:
    with forward_only():
        return network.forward(params, x, None, marks, None)[0]


def _step(params: Params, x: Array, state: State, *, network: Layer) -> tuple[Array, State]:
    with forward_only():
        y, state, _ = network.forward(params, x, state, Marks(), None)
    return (y[:, 0, ...] if network.keeps_time else y), state
