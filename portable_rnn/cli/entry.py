"""The command line: `portable-rnn demo | train | predict | convert | info | backends | bench`.

What goes wrong through bad input ends with one line on stderr and exit code 2, an interruption with 130.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

import numpy as np

from ..arrays import DTYPES, NAMES, Backend, BackendInfo, backends, enable_float64
from ..arrays import backend as as_backend
from ..bench.command import add_options as add_bench_options
from ..bench.command import bench
from ..data import Table, load_seattle_temps, read_csv
from ..errors import InputError, MissingDependencyError, NonFiniteError, printable
from ..files import check_writable, write_file
from ..forecasting import (
    CELLS,
    Result,
    Settings,
    TimeStep,
    demo,
    forecast_lines,
    load_forecaster,
    time_text,
    train_forecaster,
    yesterday_and_change,
)
from ..plotting import check_picture
from ..version import __version__

__all__ = ["build_parser", "main"]

PROGRAM = "portable-rnn"
_DEFAULTS = Settings()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv : sequence of str, optional
        The words after ``portable-rnn``; those of the process when left out.

    Returns
    -------
    int
        The exit code: 0, 2 after bad input, 130 after Ctrl-C, 141 where nobody reads the output any more.
    """
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that can't show "°" gets "?" instead of a traceback
    try:
        args.run(args)
        if sys.stdout is not None:
            sys.stdout.flush()
    except (InputError, MissingDependencyError, NonFiniteError) as error:
        return _fail(2, f"error: {error}")
    except KeyboardInterrupt:
        return _fail(130, "interrupted")
    except BrokenPipeError:
        # as in `portable-rnn ... | head`; what is still in the buffer must not raise again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The commands and their options.

    Returns
    -------
    argparse.ArgumentParser
        Without parameters to describe: ``build_parser().parse_args(["demo"])``.
    """
    parser = _Parser(prog=PROGRAM, description="Train recurrent networks to forecast, on any array library.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    run = _command(commands, "demo", _demo, "forecast hourly temperatures that come with the package")
    _add_backend_options(run)
    run.add_argument("--seed", type=_seed, default=_DEFAULTS.seed, help="of weights and batches (default: %(default)s)")
    save, plot = "seattle-temps-forecast.safetensors", "seattle-temps-forecast.png"
    run.add_argument("--save", metavar="PATH", type=Path, default=save, help="model file (default: %(default)s)")
    run.add_argument("--plot", metavar="PATH", type=Path, help=f"picture of forecasts against truth (default: {plot})")
    run.set_defaults(default_plot=Path(plot))

    run = _command(commands, "train", _train, "learn to forecast a column of a CSV file")
    _add_train_options(run)
    _add_backend_options(run)

    run = _command(commands, "predict", _predict, "forecast what follows the last row of a CSV file, as CSV")
    run.add_argument("model", metavar="MODEL", type=Path, help="file that train or demo saved")
    run.add_argument("file", metavar="FILE.csv", type=Path, help="with the columns that the model was trained on")
    run.add_argument("--all", action="store_true", help="forecast after every row that ends a whole window")
    run.add_argument("--output", metavar="OUT.csv", type=Path, help="where to write (default: stdout)")
    run.add_argument("--backend", metavar="NAME", help=_BACKEND_HELP)
    run.add_argument("--dtype", choices=DTYPES, help="to compute in (default: the model's)")

    run = _command(commands, "convert", _convert, "turn a model file of one framework into another's")
    files = "a model (.safetensors, .keras, .onnx) or a state dict of torch (.safetensors, .pt, .pth, .bin)"
    run.add_argument("source", metavar="IN", type=Path, help=files)
    run.add_argument("target", metavar="OUT", type=Path, help="the file to write; its suffix says which kind")
    text = "what follows the last recurrent layer of a state dict, which doesn't say"
    run.add_argument("--pooling", choices=("none", "last", "ends", "mean", "max"), help=text)
    text = (
        "what stands where a state dict leaves a place open, such as relu: one for all, or one for each; none: nothing"
    )
    run.add_argument("--activations", metavar="A,B,...", type=_functions, help=text)
    run.add_argument("--nonlinearity", choices=("tanh", "relu"), help="of an RNN in a state dict, which doesn't say")
    run.add_argument("--order", metavar="A,B,...", type=_names, help="a state dict's layers in the order they run")

    run = _command(commands, "info", _info, "what a model file (.safetensors) says about itself")
    run.add_argument("file", metavar="FILE", type=Path)

    run = _command(commands, "backends", _backends, "which array libraries this machine has")
    run.add_argument("--backend", metavar="NAME", choices=NAMES, help="look at this one only")

    run = _command(
        commands, "bench", _bench, "time training steps and forward passes beside PyTorch's, on this machine"
    )
    run.add_argument("--backend", metavar="NAME", help=_BACKEND_HELP)
    run.add_argument("--device", metavar="NAME", help="such as cuda:1 (default: the library's own)")
    add_bench_options(run)
    run.set_defaults(default_plot=Path("portable-rnn-bench.png"))
    return parser


# ---------------------------------------------------------------------- the commands


def _demo(args: argparse.Namespace) -> None:
    target, plot = _resources(args)
    data = load_seattle_temps()
    _say(f"Data: {len(data.values):,} hourly temperatures of Seattle in {data.units[0]} ({data.source})")
    _say("These are climate normals: for each hour of the year the mean over thirty years, not measured weather. Real")
    _say("weather is much harder to forecast, and the errors below say nothing about it.")
    _say("In: the last 24 hours, which are 25 readings (the first is the same hour yesterday). Out: the next 6 hours.")
    result = demo(target, seed=args.seed)
    _report(result)
    rule = _number(float(np.abs(yesterday_and_change(result) - result.truth).mean()))
    _say("A rule without learning is hard to beat on data this smooth: yesterday's value plus the change since then")
    _say(f"has MAE {rule}.")
    _keep(result, args.save, plot, title="Hourly temperature normals of Seattle (NOAA): 24 hours in, 6 hours out")


def _train(args: argparse.Namespace) -> None:
    target, plot = _resources(args, args.file)
    settings = Settings(**{name: getattr(args, name) for name in Settings.__dataclass_fields__})
    table = _read(args.file, args.target, args.inputs, args.time)
    if not args.quiet:
        _describe(args.file, table)
    result = train_forecaster(table, settings, backend=target, time=args.time, progress=not args.quiet)
    recipe = result.forecaster.recipe
    if not args.quiet:
        inputs = ", ".join(map(printable, recipe.inputs))
        _say(f"In: {inputs} over {recipe.window} rows. Out: {printable(recipe.target)} over {recipe.horizon}.")
    _report(result, brief=args.quiet)
    _keep(result, args.save, plot)


def _predict(args: argparse.Namespace) -> None:
    if args.output is not None:
        _check_writable(args.output, "output", args.model, args.file)
    if args.dtype == "float64":
        enable_float64(_library(args))
    forecaster = load_forecaster(args.model, _library(args), args.dtype)
    recipe = forecaster.recipe
    try:
        table = read_csv(args.file, target=recipe.target, inputs=recipe.inputs, time=recipe.time)
        rows, forecasts = forecaster.forecast_table(table, every=args.all)
    except InputError as error:
        raise InputError(f"{error} (the model's columns: {', '.join(recipe.inputs)})") from error
    lines = forecast_lines(table, rows, forecasts, numbered=args.all)
    if args.output is None:
        _write_csv(sys.stdout, lines)
        return
    text = io.StringIO()
    _write_csv(text, lines)
    write_file(args.output, text.getvalue().encode())


def _convert(args: argparse.Namespace) -> None:
    from ..interop.convert import convert

    pooling = {None: "auto", "none": None}.get(args.pooling, args.pooling)
    asked = {name: getattr(args, name) for name in ("activations", "nonlinearity", "order")}
    model = convert(args.source, args.target, pooling=pooling, **asked)
    _say(f"{args.source} -> {args.target}: {model.network}")
    for key in ("conversion_check", "conversion_notes"):
        if key in model.metadata:
            _say(printable(model.metadata[key], limit=10_000))


def _info(args: argparse.Namespace) -> None:
    from ..interop.convert import describe

    _say(describe(args.file))


def _backends(args: argparse.Namespace) -> None:
    found = [info for info in backends() if args.backend in (None, info.name)]
    rows = [("library", "version", "here", "devices"), *map(_backend_row, found)]
    _say_table(rows, right=())
    for info in found:
        if not info.available:
            _say(f"{info.name}: {_why_not(info)}")
    if not args.backend:
        default = os.environ.get("PORTABLE_RNN_BACKEND")
        _say(f"Without --backend: {default} (from $PORTABLE_RNN_BACKEND)" if default else "Without --backend: numpy")


def _bench(args: argparse.Namespace) -> None:
    args.backend = _library(args)
    if args.json is not None:
        _check_writable(args.json, "file of times")
    bench(args, _picture(args, *([args.json] if args.json else [])), _say)


# ---------------------------------------------------------------------- options


_BACKEND_HELP = f"array library: {', '.join(NAMES)} (default: $PORTABLE_RNN_BACKEND, or numpy)"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage."""
        raise SystemExit(_fail(2, f"error: {message} (see `{self.prog} --help`)"))


def _command(commands: Any, name: str, run: Callable[[argparse.Namespace], None], help: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def _add_backend_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", metavar="NAME", help=_BACKEND_HELP)
    parser.add_argument("--device", metavar="NAME", help="such as cuda:1 (default: the library's own)")
    parser.add_argument("--dtype", choices=DTYPES, help="to compute in (default: float32)")


def _add_train_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", metavar="FILE.csv", type=Path, help="a header line, then numbers, oldest row first")
    add("--target", metavar="COLUMN", required=True, help="what to forecast; its past is always an input")
    add("--inputs", metavar="A,B,...", type=_names, help="columns to forecast from (default: every column of numbers)")
    add("--time", metavar="COLUMN", help="column with ISO 8601 times (default: the first that holds such times)")
    add("--cell", choices=list(CELLS), default=_DEFAULTS.cell, help="(default: %(default)s)")
    _add_number(parser, "--hidden-size", "units of a layer")
    _add_number(parser, "--layers", "recurrent layers")
    add("--window", metavar="N", type=_count, help="rows to look at (default: 24, or a period and one row if longer)")
    _add_number(parser, "--horizon", "rows to forecast")
    text = "rows in a season, as 24 for hours of a day (default: taken from the times, else none)"
    add("--period", metavar="N", type=_count, help=text)
    _add_number(parser, "--epochs", "at most; training stops when the validation loss no longer falls")
    _add_number(parser, "--batch-size", "windows in an update")
    _add_number(parser, "--learning-rate", "of Adam at the start, falling to 0", _positive)
    _add_number(parser, "--test-fraction", "part of the rows, the last ones, to test on", _fraction)
    _add_number(parser, "--seed", "of weights and batches", _seed)
    add("--save", metavar="PATH", type=Path, help="model file (default: FILE-forecast.safetensors in this folder)")
    add("--plot", metavar="PATH", type=Path, help="picture (default: FILE-forecast.png in this folder)")
    add("--quiet", action="store_true", help="print test errors and file names only")


def _add_number(
    parser: argparse.ArgumentParser, flag: str, help: str, kind: Callable[[str], Any] | None = None
) -> None:
    default = getattr(_DEFAULTS, flag[2:].replace("-", "_"))
    parser.add_argument(flag, metavar="N", type=kind or _count, default=default, help=f"{help} (default: %(default)s)")


def _names(text: str) -> list[str]:
    """The names between commas; quotes around one that has a comma itself."""
    return [name.strip() for name in next(csv.reader([text], skipinitialspace=True), []) if name.strip()]


def _functions(text: str) -> str | list[str]:
    """One name of an activation, or a list of those between commas; a comma within brackets belongs to a name."""
    names = [name.strip() for name in re.split(r",(?![^(]*\))", text)]
    return names[0] if len(names) == 1 else names


def _kind(parse: Callable[[str], Any], holds: Callable[[Any], bool], expected: str) -> Callable[[str], Any]:
    """A type for argparse that says what it expected."""

    def convert(text: str) -> Any:
        try:
            number = parse(text)
        except ValueError:
            number = None
        if number is None or not holds(number):
            raise argparse.ArgumentTypeError(f"expected {expected}, received {text!r}")
        return number

    return convert


_count = _kind(int, lambda number: number >= 1, "a whole number of at least 1")
_seed = _kind(int, lambda number: number >= 0, "a whole number of at least 0")
_positive = _kind(float, lambda number: 0 < number < float("inf"), "a positive number")
_fraction = _kind(float, lambda number: 0 < number < 1, "a number between 0 and 1")


# ---------------------------------------------------------------------- before training


def _library(args: argparse.Namespace) -> str:
    return args.backend or os.environ.get("PORTABLE_RNN_BACKEND") or "numpy"


def _resources(args: argparse.Namespace, *inputs: Path) -> tuple[Backend, Path | None]:
    """The backend and the picture's path: what can fail without training fails here, before it."""
    if args.dtype == "float64":
        enable_float64(_library(args))
    target = as_backend(_library(args), args.device, args.dtype)
    if inputs:
        args.save = args.save or Path(f"{inputs[0].stem}-forecast.safetensors")
        args.default_plot = Path(f"{inputs[0].stem}-forecast.png")
    _check_writable(args.save, "model file", *inputs)
    return target, _picture(args, args.save, *inputs)


def _picture(args: argparse.Namespace, *others: Path) -> Path | None:
    """The picture's path, or None where nobody asked for it and it can't be drawn; the command's others differ."""
    plot: Path = args.plot or args.default_plot
    try:
        check_picture(plot)
    except MissingDependencyError as error:
        if args.plot is not None:
            raise
        print(f"No picture: {error}", file=sys.stderr)
        return None
    _check_writable(plot, "picture", *others)
    return plot


def _check_writable(path: Path, what: str, *others: Path) -> None:
    """Raise InputError where a file can't be written, or would replace another one of this command."""
    if any(path.resolve() == other.resolve() for other in others):
        raise InputError(
            f"can't write the {what} {str(path)!r}: this command uses that file otherwise: give another path"
        )
    check_writable(path, what=what)


def _read(path: Path, target: str, inputs: list[str] | None, time: str | None) -> Table:
    if inputs is not None:
        inputs = [target, *(name for name in inputs if name != target)]
    return read_csv(path, target=target, inputs=inputs, time=time)


# ---------------------------------------------------------------------- what is printed


def _say(text: str) -> None:
    """Print lines; what came from a file stands in them without control characters."""
    print("\n".join(printable(line, limit=10_000) for line in text.split("\n")), flush=True)


def _fail(code: int, message: str) -> int:
    print(f"{PROGRAM}: {printable(' '.join(message.split()), limit=10_000)}", file=sys.stderr)
    return code


def _say_table(rows: Sequence[Sequence[str]], right: Iterable[int]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [str.rjust if k in set(right) else str.ljust for k in range(len(widths))]
    for row in rows:
        cells = (align(cell, width) for align, cell, width in zip(aligned, row, widths, strict=True))
        _say("  ".join(cells).rstrip())


def _describe(path: Path, table: Table) -> None:
    if table.times is None:
        times = "no time column"
    else:
        step = TimeStep.of(table.times)
        first, last = time_text(table.times[[0, -1]])
        even = f"one {step.name} apart" if step and step.name != "step" else "evenly spaced"
        times = f"{first} to {last}, {even if step else 'NOT evenly spaced: rows are counted as if they were'}"
    _say(f"Data: {path}, {len(table.values):,} rows, {times}")


def _report(result: Result, *, brief: bool = False) -> None:
    """The run, its test errors beside the baselines', and by how much it beats them."""
    model, recipe, history = result.forecaster.model, result.forecaster.recipe, result.history
    unit = f" ({recipe.unit})" if recipe.unit else ""
    if not brief:
        weights = sum(int(np.prod(shape)) for shape in model.network.parameter_shapes().values())
        sizes = ", ".join(f"{name} {part.stop - part.start:,}" for name, part in result.parts.items())
        best = int(np.argmin(history.val_loss)) + 1
        stopped = f"stopped after {len(history.loss)}" if history.stopped else f"ran {len(history.loss)}"
        _say(f"Network: {weights:,} weights, on {model.backend}; it learns what {recipe.reference!r} leaves over")
        _say(f"Rows in time order: {recipe.window:,} looked at only, {sizes}")
        _say(f"Training {stopped} epochs; the weights of epoch {best}, the best in validation, were kept")
    rows = [(f"error on {len(result.truth):,} test forecasts", f"MAE{unit}", f"RMSE{unit}")]
    rows += [(s.name, _number(s.mean_absolute), _number(s.root_mean_square)) for s in result.scores]
    _say_table(rows, right=(1, 2))
    own, *others = (score.mean_absolute for score in result.scores)
    for score, other in zip(result.scores[1:], others, strict=True):
        _say(f"The network {_verdict(own, other, repr(score.name))}")


def _verdict(own: float, other: float, name: str) -> str:
    if own < other:
        return f"beats {name} by {100 * (1 - own / other):.0f} % (MAE)."
    return f"does NOT beat {name}" + (f": its MAE is {100 * (own / other - 1):.0f} % higher." if other else ".")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _keep(result: Result, model: Path, plot: Path | None, title: str = "") -> None:
    result.forecaster.save(model)
    _say(f"Model: {model}")
    if plot is not None:
        result.plot(plot, title=title)
        _say(f"Picture: {plot}")


def _write_csv(file: TextIO, lines: Iterable[list[str]]) -> None:
    csv.writer(file, lineterminator="\n").writerows(lines)


def _backend_row(info: BackendInfo) -> tuple[str, str, str, str]:
    return info.name, info.version or "-", "yes" if info.available else "no", ", ".join(info.devices) or "-"


def _why_not(info: BackendInfo) -> str:
    reason = info.reason.partition("; `portable-rnn backends`")[0]
    if info.name == "cupy" and info.version is not None:
        return f"installed, but its arithmetic can't run here and has not been run here ({reason})"
    return reason
