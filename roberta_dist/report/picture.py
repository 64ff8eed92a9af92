"""A run as one picture: losses against the unigram entropy, learning rate, gradient norm, speed."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from roberta_dist.report.read import Column, RunData
from roberta_dist.units import human_count

# Okabe and Ito's colours, which readers with any colour vision tell apart
TRAINING, HELD_OUT, ENTROPY, PLAIN = "#0072B2", "#D55E00", "#555555", "#009E73"
STEP_PARTS = {
    "compute_s": ("forward and backward", "#009E73"),
    "optimizer_s": ("update", "#E69F00"),
    "data_wait_s": ("waiting for data", "#CC79A7"),
}
"""Metric → (label, colour) of the parts of a step, from the bottom up."""
SMOOTHED_SHARE = 50
"""The bold line averages 1/50 of the run."""
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 10,
    "grid.color": "#e3e3e3",
    "legend.frameon": False,
}


def smooth(values: Column) -> Column:
    """Centred mean over 1/50 of the values, which ignores NaN; shorter windows at the ends."""
    half = max(1, len(values) // SMOOTHED_SHARE) // 2
    known = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    index = np.arange(len(values))
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    with np.errstate(invalid="ignore"):
        mean: Column = (sums[last] - sums[first]) / (counts[last] - counts[first])
    return mean


def headline(run: RunData) -> str:
    """The run in one line: how far, on what, and how good."""
    step, last = int(run.training["step"][-1]), run.config.schedule.max_steps
    parts = [f"step {step:,} of {last:,}"]
    if world := run.environment.get("world_size"):
        parts.append(
            f"{world} x {run.environment.get('device', 'device')}, ZeRO-{run.config.engine.stage}"
        )
    if run.held_out["step"].size:
        parts.append(f"held-out loss {run.held_out['eval_loss'][-1]:.3f} nats")
    if run.unigram_entropy is not None:
        parts.append(f"unigram entropy {run.unigram_entropy:.3f}")
    return " · ".join(parts)


def draw(run: RunData) -> bytes:
    """The picture of `run` as PNG bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        figure = pyplot.figure(figsize=(12, 7.2), layout="constrained")
        figure.suptitle(run.name, x=0.01, ha="left", fontsize=14, fontweight="bold")
        grid = figure.add_gridspec(4, 3)
        loss = figure.add_subplot(grid[:, :2])
        _draw_losses(loss, run)
        _draw_panels([figure.add_subplot(grid[row, 2], sharex=loss) for row in range(4)], run)
        loss.set_xlabel("step")
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=120, metadata={"Software": None})
        pyplot.close(figure)
    return picture.getvalue()


def _draw_losses(axes: Any, run: RunData) -> None:
    steps, values = run.training["step"], run.training["loss"]
    axes.set_title(headline(run), fontweight="normal")
    axes.plot(steps, values, color=TRAINING, alpha=0.25, linewidth=0.8)
    axes.plot(steps, smooth(values), color=TRAINING, linewidth=1.8, label="training loss")
    if run.held_out["step"].size:
        axes.plot(
            run.held_out["step"],
            run.held_out["eval_loss"],
            color=HELD_OUT,
            marker="o",
            markersize=4,
            label="held-out loss, fixed masks",
        )
    if run.unigram_entropy is not None:
        axes.axhline(
            run.unigram_entropy,
            color=ENTROPY,
            linestyle="--",
            linewidth=1.2,
            label="unigram entropy of the held-out text: the best constant guess",
        )
    axes.set_ylabel("cross-entropy, nats a masked token")
    axes.legend(loc="upper right")


def _draw_panels(panels: list[Any], run: RunData) -> None:
    """Learning rate, gradient norm, speed and where the time of a step goes, from the top down."""
    rate, gradient, speed, parts = panels
    steps, training = run.training["step"], run.training
    rate.plot(steps, training["lr"], color=PLAIN)
    rate.set_title("learning rate")
    _draw_noisy(gradient, steps, training["grad_norm"])
    gradient.set_title("gradient norm before clipping")
    _draw_noisy(speed, steps, training["tokens_per_s"])
    speed.set_title("tokens a second, all ranks")
    speed.yaxis.set_major_formatter(lambda value, _: human_count(value))
    _draw_step_parts(parts, run)
    for panel in panels[1:]:
        panel.set_ylim(bottom=0)
    for panel in panels[:-1]:
        panel.tick_params(labelbottom=False)
    parts.set_xlabel("step")


def _draw_step_parts(axes: Any, run: RunData) -> None:
    known = [name for name in STEP_PARTS if name in run.training]
    if known:
        axes.stackplot(
            run.training["step"],
            [smooth(run.training[name]) for name in known],
            labels=[STEP_PARTS[name][0] for name in known],
            colors=[STEP_PARTS[name][1] for name in known],
            linewidth=0,
        )
        axes.legend(loc="upper center", ncols=3, fontsize=7, columnspacing=1.0, handlelength=1.0)
        axes.margins(y=0.3)  # room for the legend
    axes.set_title("seconds of a step")


def _draw_noisy(axes: Any, steps: Column, values: Column) -> None:
    axes.plot(steps, values, color=PLAIN, alpha=0.25, linewidth=0.8)
    axes.plot(steps, smooth(values), color=PLAIN, linewidth=1.5)
