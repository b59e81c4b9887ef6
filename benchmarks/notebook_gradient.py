"""The notebook's gradient and the exact one: error against finite differences, and what each learns.

Run ``python benchmarks/notebook_gradient.py``. It prints the tables of ``docs/notebook.md`` and, with matplotlib
(``pip install '.[plot]'``), draws ``docs/images/notebook.png``. NumPy, float64, about half a minute.

The notebook itself is not in this repository. Its four sums and the figures that it shows are; `original_gradients` is
a reconstruction of its formula, with a switch for each of its two faults.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from portable_rnn.notebook import SimpleRNN, dtanh

IMAGE = Path(__file__).resolve().parent.parent / "docs" / "images" / "notebook.png"
SUMS = {"notebook": ((1, 2), (0, 5), (3, 4), (2, 1)), "others": ((1, 2), (4, 2), (1, 5), (4, 3))}
# What the notebook shows of its one run, whose seed it doesn't say
PRINTED = {
    0: "87.4627",
    100: "3.3846",
    200: "8.2014",
    300: "4.7297",
    400: "10.0501",
    500: "0.2479",
    600: "0.0001",
    700: "0.0000",
    800: "0.0000",
    900: "0.0000",
}
PRINTED_ANSWER = "6.3796"
SEEDS = range(10)
EPOCHS = 1000
NETWORKS = 50
SCALE = 0.5

Gradients = dict[str, np.ndarray[Any, Any]]
Formula = Callable[[SimpleRNN, Any], Gradients]


def original_gradients(
    rnn: SimpleRNN, d_y: Any, *, dtanh_of_h: bool = True, output_at_every_step: bool = True
) -> Gradients:
    """The notebook's backward pass after ``rnn.forward``; without both faults it is the exact one."""
    inputs, hs = rnn.last_inputs, rnn.last_hs
    last = len(inputs)
    gradients = {name: np.zeros_like(getattr(rnn, name)) for name in ("Wxh", "Whh", "bh")}
    dh = np.zeros_like(hs[0])
    for t in range(last, 0, -1):
        if output_at_every_step or t == last:
            dh = dh + rnn.Why.T @ d_y
        da = dh * (dtanh(hs[t]) if dtanh_of_h else 1 - hs[t] ** 2)
        gradients["Wxh"] += da @ inputs[t - 1].T
        gradients["Whh"] += da @ hs[t - 1].T
        gradients["bh"] += da
        dh = rnn.Whh.T @ da
    return gradients | {"Why": d_y @ hs[last].T, "by": d_y}


FORMULAS: dict[str, Formula] = {
    "original": original_gradients,
    "fault 1 only": lambda rnn, d_y: original_gradients(rnn, d_y, output_at_every_step=False),
    "fault 2 only": lambda rnn, d_y: original_gradients(rnn, d_y, dtanh_of_h=False),
    "SimpleRNN": lambda rnn, d_y: rnn.backward(d_y, learning=False),
}


# ---------------------------------------------------------------------- error of the gradient


def finite_differences(rnn: SimpleRNN, inputs: Any, d_y: Any, step: float = 1e-5) -> np.ndarray[Any, Any]:
    """Central differences of ``sum(y * d_y)`` in every entry of Whh."""
    gradient = np.empty_like(rnn.Whh)
    for index in np.ndindex(gradient.shape):
        kept = rnn.Whh[index]
        values = []
        for moved in (kept + step, kept - step):
            rnn.Whh[index] = moved
            values.append(np.sum(rnn.forward(inputs) * d_y))
        rnn.Whh[index] = kept
        gradient[index] = (values[0] - values[1]) / (2 * step)
    return gradient


def gradient_errors(steps: int) -> dict[str, tuple[float, float]]:
    """Relative error and cosine of each formula's Whh gradient, averaged over random networks."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in FORMULAS}
    for seed in range(NETWORKS):
        rng = np.random.default_rng(seed)
        rnn = SimpleRNN(input_size=1, hidden_size=10, output_size=1, seed=seed)
        for name in ("Wxh", "Whh", "Why"):
            setattr(rnn, name, SCALE * rng.standard_normal(getattr(rnn, name).shape))
        inputs = list(rng.standard_normal((steps, 1, 1)))
        d_y = np.ones((1, 1))  # its size cancels in both numbers
        exact = finite_differences(rnn, inputs, d_y)
        rnn.forward(inputs)
        for name, formula in FORMULAS.items():
            got = formula(rnn, d_y)["Whh"]
            error = np.linalg.norm(got - exact) / np.linalg.norm(exact)
            cosine = np.sum(got * exact) / (np.linalg.norm(got) * np.linalg.norm(exact))
            found[name].append((float(error), float(cosine)))
    return {name: tuple(np.mean(pairs, axis=0)) for name, pairs in found.items()}


def print_gradient_errors() -> None:
    """The first table."""
    print(
        f"Whh gradient against float64 finite differences: relative error (cosine), mean of {NETWORKS} networks\n"
        f"hidden 10, one input, one output, weights {SCALE} * randn, zero biases, inputs randn\n"
        "fault 1: dtanh evaluated at h; fault 2: the output's gradient added at every step\n"
    )
    print("steps " + "".join(f"{name:>17}" for name in FORMULAS))
    for steps in range(2, 7):
        cells = [
            f"{error:9.2f} ({cosine:5.2f})" if error > 1e-3 else f"{error:9.0e} ({cosine:5.2f})"
            for error, cosine in gradient_errors(steps).values()
        ]
        print(f"{steps:5} " + "".join(cells))


# ---------------------------------------------------------------------- what is learnt


def learn(formula: Formula, pairs: Sequence[tuple[int, int]], seed: int) -> tuple[list[float], float]:
    """The notebook's training cell with one of the formulas: the summed loss of each epoch, and 2 + 3."""
    np.random.seed(seed)  # as the notebook does  # noqa: NPY002
    rnn = SimpleRNN(input_size=1, hidden_size=10, output_size=1, learning_rate=0.01)
    data = [([np.array([[a]]), np.array([[b]])], np.array([[a + b]])) for a, b in pairs]
    losses = []
    for _ in range(EPOCHS):
        total = 0.0
        for inputs, target in data:
            error = rnn.forward(inputs) - target
            total += float(np.sum(error**2))
            for name, gradient in formula(rnn, 2 * error).items():
                setattr(rnn, name, getattr(rnn, name) - rnn.lr * gradient)
        losses.append(total)
    return losses, float(rnn.predict([np.array([[2]]), np.array([[3]])]).flatten()[0])


def print_beside_the_notebook(runs: dict[str, list[tuple[list[float], float]]], seed: int = 0) -> None:
    """What the notebook shows, and one seed with either gradient."""
    print(f"\nthe notebook's output, and the same with seed {seed}: the loss every 100 epochs, then 2 + 3\n")
    print(f"{'epoch':<7}{'notebook':>10}" + "".join(f"{name:>12}" for name in runs))
    found = [outcomes[seed] for outcomes in runs.values()]
    for epoch, printed in PRINTED.items():
        print(f"{epoch:<7}{printed:>10}" + "".join(f"{losses[epoch]:12.4f}" for losses, _ in found))
    print(f"{'2 + 3':<7}{PRINTED_ANSWER:>10}" + "".join(f"{answer:12.4f}" for _, answer in found))


def print_outcomes(runs: dict[str, list[tuple[list[float], float]]], pairs: Sequence[tuple[int, int]]) -> None:
    """The second table: one row for each seed."""
    print(f"\ntrained on {', '.join(f'{a}+{b}' for a, b in pairs)}: {EPOCHS} epochs, learning rate 0.01")
    print(f"{'':6}{'original':>20}  {'SimpleRNN':>20}")
    print(f"{'seed':<6}" + f"{'final loss':>12}{'2 + 3':>8}  " * 2)
    for seed in SEEDS:
        row = "".join(f"{losses[-1]:12.4f}{p:8.2f}  " for losses, p in (runs[name][seed] for name in runs))
        print(f"{seed:<6}{row}")
    for name, outcomes in runs.items():
        fitted = sum(losses[-1] < 1e-3 for losses, _ in outcomes)
        answers = [p for _, p in outcomes]
        largest = max(losses[-1] for losses, _ in outcomes)
        print(f"{name}: {fitted} of {len(outcomes)} seeds end below 0.001, the largest loss is {largest:.4f};", end=" ")
        print(f"2 + 3 between {min(answers):.2f} and {max(answers):.2f}")


def draw(runs: dict[str, list[tuple[list[float], float]]]) -> None:
    """Loss curves of all seeds, one panel for each formula."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    colours = {"original": "#d55e00", "SimpleRNN": "#0072b2"}  # Okabe and Ito: told apart by everybody
    titles = {"original": "The notebook's formula", "SimpleRNN": "The exact gradient"}
    style = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}
    with mpl.rc_context(style):
        figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
        figure.get_layout_engine().set(wspace=0.06)
        for panel, (name, outcomes) in zip(panels, runs.items(), strict=True):
            for losses, _ in outcomes:
                panel.plot(range(1, EPOCHS + 1), losses, color=colours[name], linewidth=1.2, alpha=0.8)
            fitted = sum(losses[-1] < 1e-3 for losses, _ in outcomes)
            panel.set_title(f"{titles[name]}: {fitted} of {len(outcomes)} seeds fit", color=colours[name])
            panel.axhline(1e-3, color="0.4", linewidth=1, linestyle=(0, (4, 3)))
            panel.set(yscale="log", ylim=(1e-5, 300), xlim=(0, EPOCHS), xlabel="epoch")
            panel.set_yticks([1e-4, 1e-2, 1, 100], ["0.0001", "0.01", "1", "100"])
            panel.minorticks_off()
            panel.grid(axis="y", which="major", color="0.9")
            panel.set_axisbelow(True)
        panels[0].set_ylabel("loss, summed over four sums")
        panels[0].annotate("fits below 0.001", (10, 1e-3), (0, 4), textcoords="offset points", color="0.3", size=9)
        IMAGE.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(IMAGE, dpi=120)
        plt.close(figure)
    print(f"\ndrawn: {IMAGE.relative_to(IMAGE.parent.parent.parent)}")


def main() -> None:
    """Print the tables and draw the curves."""
    print_gradient_errors()
    for name, pairs in SUMS.items():
        runs = {
            formula: [learn(FORMULAS[formula], pairs, seed) for seed in SEEDS] for formula in ("original", "SimpleRNN")
        }
        if name == "notebook":
            print_beside_the_notebook(runs)
        print_outcomes(runs, pairs)
        if name == "notebook" and importlib.util.find_spec("matplotlib") is not None:
            draw(runs)


if __name__ == "__main__":
    main()
