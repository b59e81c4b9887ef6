"""The checks, each a function of a `Subject` that returns a `Finding` or says why it does not apply."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..arrays import (
    device_of,
    device_scope,
    dtype_name,
    forbid_transfers,
    leaves,
    library_name,
    map_leaves,
    namespace_of,
)
from ..execution import compiles, forget
from ..models import Stream, load
from .gates import explained
from .gradients import check_finite_differences
from .subject import BATCH, RATE, STEPS, Finding, NotApplicableError, Subject, compared, refused, to_host

__all__ = ["CHECKS", "ONCE"]


def check_textbook(subject: Subject) -> Finding:
    """y and the final state, with an initial state and rows of every length."""
    lengths = subject.lengths if subject.has_steps else None
    _, final = subject.exact.textbook(subject.x, None, lengths)
    state = subject.cotangent(final)
    expected = subject.textbook(subject.x, state, lengths)
    found = compared(
        subject.outputs(subject.x, state, lengths), expected, subject.limit, "(y, state)", "the textbook's"
    )
    return found if found.passed else explained(subject, found, state, lengths)


def check_parity(subject: Subject) -> Finding:
    """y and the final state against NumPy's in float64."""
    lengths = subject.lengths if subject.has_steps else None
    _, final = subject.exact.outputs(subject.x, None, lengths)
    state = subject.cotangent(final)
    got, expected = (s.outputs(subject.x, state, lengths) for s in (subject, subject.exact))
    return compared(got, expected, subject.limit, "(y, state)", "NumPy's in float64")


def check_gradient_parity(subject: Subject) -> Finding:
    """All gradients against NumPy's in float64, which finite differences check."""
    got, expected = (to_host(s.gradients(s.place(subject.arguments))) for s in (subject, subject.exact))
    return compared(got, expected, 5 * subject.limit, "(dparams, dx, dstate)", "NumPy's in float64")


def check_ragged(subject: Subject) -> Finding:
    """A row of a padded batch gives what NumPy gives for it alone, whatever stands behind its end."""
    _need_steps(subject)
    x, lengths, exact = subject.x.copy(), subject.lengths, subject.exact
    if x.dtype.kind == "f":
        for row, end in zip(x, lengths, strict=True):
            row[end:] = np.nan
    state = subject.cotangent(exact.outputs(subject.x)[1], 11)
    y, final = subject.outputs(x, state, lengths)
    dy, dstate = subject.cotangent(y), subject.cotangent(final, 13)
    dy[[b for b, end in enumerate(lengths) if not end]] = 0
    dparams, dx, _ = subject.pulled_back(x, state, lengths, dy=dy, dstate=dstate)
    keeps, total = subject.network.keeps_time, {name: 0 * p for name, p in subject.host_params.items()}
    for b, end in ((b, end) for b, end in enumerate(lengths) if end):
        one, own = slice(b, b + 1), subject.x[b : b + 1, :end]
        begin, dfinal, after = (map_leaves(lambda part, one=one: part[:, one], s) for s in (state, dstate, final))
        grads, dx_alone, _ = exact.pulled_back(own, begin, dy=dy[one, :end] if keeps else dy[one], dstate=dfinal)
        total = {name: total[name] + g for name, g in grads.items()}
        got = (y[one, :end] if keeps else y[one], after, None if dx is None else dx[one, :end])
        what = f"of row {b} with length {end}, (y, state, dx)"
        found = compared(got, (*exact.outputs(own, begin), dx_alone), 5 * subject.limit, what, "the row's own")
        if not found.passed:
            return found
    if keeps and any(np.any(y[b, end:]) for b, end in enumerate(lengths)):
        return Finding(np.inf, 0.0, "y behind a row's end is not zero")
    empty = lengths.index(0)
    after, before = (map_leaves(lambda part: part[:, empty], s) for s in (final, state))
    found = compared(after, before, subject.limit, "the state of an empty row", "its initial state")
    return found if not found.passed else compared(dparams, total, 5 * subject.limit, "dparams", "the sum over rows")


def check_chunks(subject: Subject) -> Finding:
    """Two halves, the state handed on, give what the whole gives."""
    if not subject.network.keeps_time:
        raise NotApplicableError("the network removes the time axis")
    _need_stream(subject)
    state = subject.cotangent(subject.exact.outputs(subject.x)[1])
    half, whole = STEPS // 2, subject.exact.outputs(subject.x, state)
    first, between = subject.outputs(subject.x[:, :half], state)
    second, final = subject.outputs(subject.x[:, half:], between)
    got = (np.concatenate([first, second], axis=1), final)
    return compared(got, whole, subject.limit, "(y, state) in two pieces", "the whole's")


def check_resets(subject: Subject) -> Finding:
    """A step marked in `resets` starts a sequence of its own."""
    if not subject.network.keeps_time:
        raise NotApplicableError("the network removes the time axis")
    _need_steps(subject)
    half = STEPS // 2
    marked = np.zeros((BATCH, STEPS), dtype=bool)
    marked[:, half] = True
    got, _ = subject.network.apply(subject.params, subject.place(subject.x), resets=subject.place(marked))
    parts = [subject.exact.outputs(piece)[0] for piece in (subject.x[:, :half], subject.x[:, half:])]
    return compared(to_host(got), np.concatenate(parts, axis=1), subject.limit, "y with a reset", "two sequences'")


def check_stream(subject: Subject) -> Finding:
    """`Stream` and chained `Model.step` give what `predict` gives."""
    _need_stream(subject)
    model, x = subject.model, subject.place(subject.x)
    expected = to_host(model.predict(x))
    stream, state = Stream(model, batch_size=BATCH), None
    streamed, stepped = [], []
    for t in range(STEPS):
        streamed.append(to_host(stream.step(x[:, t, ...])))
        y_t, state = model.step(x[:, t, ...], state)
        stepped.append(to_host(y_t))
    joined = [np.stack(ys, axis=1) if subject.network.keeps_time else ys[-1] for ys in (streamed, stepped)]
    by_stream = compared(joined[0], expected, subject.limit, "y of Stream", "predict's")
    return by_stream if not by_stream.passed else compared(joined[1], expected, subject.limit, "y of step", "predict's")


def check_pullback(subject: Subject) -> Finding:
    """A pullback answers for its own call, again and again, whatever ran since."""
    first, second = subject.x, subject.input_of(subject.seed + 1)
    _, _, pull = subject.network.vjp(subject.params, subject.place(first))
    y, _, other = subject.network.vjp(subject.params, subject.place(second))
    dy = subject.cotangent(y)
    other(subject.place(dy))
    once, again = (to_host(pull(subject.place(dy))) for _ in range(2))
    expected = subject.pulled_back(first, dy=dy)
    found = compared(once, expected, subject.limit, "gradients after another call", "the call's own")
    return found if not found.passed else compared(again, once, 0.0, "gradients pulled twice", "the first time's")


def check_arguments(subject: Subject) -> Finding:
    """Nothing that is passed in is changed."""
    params, x = subject.place(subject.host_params), subject.place(subject.x)
    subject.network.apply(params, x)
    y, _, pullback = subject.network.vjp(params, x)
    dy = subject.place(subject.cotangent(to_host(y)))
    pullback(dy)
    expected = to_host(subject.place((subject.host_params, subject.x, subject.cotangent(to_host(y)))))
    return compared(to_host((params, x, dy)), expected, 0.0, "(params, x, dy)", "what was passed in")


def check_kept(subject: Subject) -> Finding:
    """Outputs, gradients, and weights after training with a schedule have the model's library, device and dtype."""
    target = subject.target
    y, state, pullback = subject.network.vjp(subject.params, subject.place(subject.x))
    model, _ = subject.trained
    with device_scope(y):
        dy = y * 1
    found = {"y": y, "state": state, "gradients": pullback(dy), "weights after training": model.params}
    found["predictions after training"] = model.predict(subject.place(subject.x))
    kinds = {type(a) for a in leaves(subject.params)} or {type(y)}
    for name, tree in found.items():
        for a in leaves(tree):
            received = f"{type(a).__name__} {dtype_name(namespace_of(a), a.dtype)} on {device_of(a)}"
            if namespace_of(a) is not target.xp or type(a) not in kinds:
                return Finding(np.inf, 0.0, f"{name}: {received} of {library_name(namespace_of(a))}, not {target}")
            if a.dtype != target.dtype or device_of(a) != target.device:
                return Finding(np.inf, 0.0, f"{name}: {received}, not {target}")
    return Finding(None, None, "")


def check_transfers(subject: Subject) -> Finding:
    """Both passes move nothing between host and device."""
    guard = forbid_transfers(subject.target)
    if guard is None:
        raise NotApplicableError(f"{subject.target.name} has no guard against transfers")
    arguments = subject.place(subject.arguments)
    with guard:
        subject.gradients(arguments)
    return Finding(None, None, "")


def check_compiled(subject: Subject) -> Finding:
    """The loop as machine code, or as one jitted function, gives what the loop step by step gives."""
    arguments = subject.place(subject.arguments)
    if compiles(subject.target.xp):
        got, plain = subject.gradients(arguments), subject.gradients(arguments, eager=True)
        return compared(to_host(got), to_host(plain), subject.limit, "gradients jitted", "those step by step")
    results = []
    for wanted in (True, False):
        with _compiled_loops(wanted):
            y, final = subject.outputs(subject.x)
            results.append((y, final, to_host(subject.gradients(arguments))))
    return compared(results[0], results[1], subject.limit, "(y, state, gradients) compiled", "those of the plain loop")


def check_saved(subject: Subject) -> Finding:
    """A saved and loaded model has the same weights and predicts the same."""
    import tempfile  # brings zip, bz2 and lzma along

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        reason = refused(lambda: subject.model.save(path))
        if reason:
            raise NotApplicableError(f"not saved: {reason}")
        loaded = load(path, subject.target)
    x = subject.place(subject.x)
    got, expected = (to_host((model.params, model.predict(x))) for model in (loaded, subject.model))
    return compared(got, expected, 0.0, "(params, y) of the loaded model", "the saved one's")


def check_update(subject: Subject) -> Finding:
    """Losses are mean squares; updates of gradient descent move against their gradients, as far as a schedule says."""
    if _drops(subject):
        raise NotApplicableError("dropout changes a training step")
    model, history = subject.trained
    exact, losses = subject.exact, []
    for rate in (RATE, RATE / 2):
        y, _ = exact.outputs(exact.x)
        losses.append(np.mean((y - subject.targets) ** 2))
        dparams, _, _ = exact.pulled_back(exact.x, dy=2 * (y - subject.targets) / y.size)
        exact = replace(exact, host_params={name: p - rate * dparams[name] for name, p in exact.host_params.items()})
    limit = 10 * subject.limit
    findings = (
        compared(np.array(history.loss[0]), np.array(losses[0]), limit, "history.loss[0]", "the mean square"),
        compared(to_host(model.params), exact.host_params, limit, "the weights", "p - rate * gradient, twice"),
        compared(np.array(history.loss[1]), np.array(losses[1]), limit, "history.loss[1]", "the mean square"),
    )
    return next((found for found in findings if not found.passed), findings[1])


def check_seed(subject: Subject) -> Finding:
    """The same seed draws the same weights as on NumPy."""
    got, expected = (to_host(subject.network.init(3, target)) for target in (subject.target, subject.exact.target))
    return compared(got, expected, 1e-6, "initial weights", "NumPy's")


# What is checked on every library, device and dtype, and what in float64 on NumPy alone.
CHECKS: dict[str, Callable[[Subject], Finding]] = {
    "outputs equal the textbook": check_textbook,
    "outputs equal NumPy's": check_parity,
    "gradients equal NumPy's": check_gradient_parity,
    "ragged equals padded": check_ragged,
    "chunks equal the whole": check_chunks,
    "resets start anew": check_resets,
    "stream equals predict": check_stream,
    "compiled equals plain": check_compiled,
    "a pullback keeps its own call": check_pullback,
    "arguments stay as they are": check_arguments,
    "library, device and dtype kept": check_kept,
    "no transfers in a step": check_transfers,
    "an update follows the gradient": check_update,
    "saved equals loaded": check_saved,
    "same seed, same weights": check_seed,
}
ONCE = {"gradients equal finite differences": check_finite_differences}


def _need_steps(subject: Subject) -> None:
    if not subject.has_steps:
        raise NotApplicableError("the network's input has no time axis")


def _need_stream(subject: Subject) -> None:
    """Raise NotApplicableError where the network needs the whole sequence."""
    _need_steps(subject)
    reason = refused(lambda: Stream(subject.model, batch_size=BATCH))
    if reason:
        raise NotApplicableError(reason)


def _drops(subject: Subject) -> bool:
    masks = subject.network.dropout_masks(np.random.default_rng(0), subject.x.shape)
    return any(bool(np.any(mask != 1)) for mask in leaves(masks))


@contextmanager
def _compiled_loops(wanted: bool) -> Iterator[None]:
    """Loops of machine code wherever they can be, or nowhere."""
    before = os.environ.get("PORTABLE_RNN_COMPILE")
    os.environ["PORTABLE_RNN_COMPILE"] = "1" if wanted else "0"
    forget()
    try:
        yield
    finally:
        if before is None:
            del os.environ["PORTABLE_RNN_COMPILE"]
        else:
            os.environ["PORTABLE_RNN_COMPILE"] = before
        forget()
