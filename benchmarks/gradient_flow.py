"""Vanishing and exploding gradients: how much of the loss's gradient reaches each step of the adding problem.

Run ``python -m benchmarks.gradient_flow`` in the repository's folder. It prints the numbers behind the picture and,
with matplotlib (``pip install '.[plot]'``), draws ``docs/images/gradient_flow.png``. Untrained networks, a few seconds.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

import portable_rnn as prnn

from .tasks.adding import sequences

IMAGE = Path(__file__).resolve().parent.parent / "docs" / "images" / "gradient_flow.png"
STEPS, HIDDEN, BATCH = 200, 64, 32
# Okabe and Ito: told apart by everybody
STYLES = (("#0072b2", "-"), ("#009e73", (0, (6, 2))), ("#d55e00", (0, (2, 1.5))))


def norms(layer: prnn.Layer, scale: float = 1.0) -> np.ndarray:
    """``||dL/dh_t||`` of an untrained network as a share of the last step's; its recurrent matrix times `scale`."""
    model = prnn.Model(prnn.Sequential(layer, prnn.Last(), prnn.Linear(HIDDEN, 1)), dtype="float64", seed=0)
    model.params = model.params | {"0.weight_hh_l0": scale * model.params["0.weight_hh_l0"]}
    x, y = sequences(np.random.default_rng(0), BATCH, STEPS)
    flow = prnn.gradient_flow(model, x.astype(np.float64), y.astype(np.float64))
    found = flow.layers[0].norms
    return found / found[-1]


def curves() -> dict[str, dict[str, np.ndarray]]:
    """By network and setting."""
    orthogonal = prnn.RNN(2, HIDDEN, initializer="torch(recurrent=orthogonal)")
    return {
        "Elman network": {
            "recurrent matrix: 1.5 × orthogonal": norms(orthogonal, 1.5),
            "orthogonal": norms(orthogonal),
            "uniform, PyTorch's default": norms(prnn.RNN(2, HIDDEN)),
        },
        "LSTM": {
            f"forget bias {bias}": norms(prnn.LSTM(2, HIDDEN, initializer=f"keras(forget_bias={bias})"))
            for bias in (5, 1, 0)
        },
    }


def draw(found: dict[str, dict[str, np.ndarray]]) -> None:
    """Two panels, one logarithmic axis."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    with mpl.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        figure, panels = plt.subplots(1, 2, figsize=(9.5, 4.2), sharey=True, layout="constrained")
        for panel, (network, lines) in zip(panels, found.items(), strict=True):
            panel.axhline(1, color="0.6", linewidth=1)
            for (label, values), (color, dashes) in zip(lines.items(), STYLES, strict=True):
                panel.plot(np.arange(1, STEPS + 1), values, color=color, linestyle=dashes, linewidth=2.2, label=label)
            panel.set(title=network, yscale="log", xlim=(1, STEPS), xlabel="time step t (the loss is at the last)")
            panel.set_xticks([1, 50, 100, 150, 200])
            panel.grid(color="0.92")
            panel.set_axisbelow(True)
            panel.legend(frameon=False, fontsize="small", loc="lower right")
        panels[0].text(140, 1e4, "explodes", color="0.35", ha="center")
        panels[0].text(60, 1e-12, "vanishes", color="0.35", ha="center")
        panels[0].set_ylabel(r"$\Vert\partial L/\partial h_t\Vert$, share of the last step's")
        IMAGE.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(IMAGE, dpi=130)
        plt.close(figure)
    print(f"drawn: {IMAGE.relative_to(IMAGE.parent.parent.parent)}")


def main() -> None:
    """Print the share that reaches the first step, and draw."""
    found = curves()
    print("| network | setting | share of the gradient at step 1 |")
    print("|---|---|---|")
    for network, lines in found.items():
        for label, values in lines.items():
            print(f"| {network} | {label} | {values[0]:.0e} |")
    if importlib.util.find_spec("matplotlib") is not None:
        draw(found)


if __name__ == "__main__":
    main()
