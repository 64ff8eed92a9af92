"""A run as one picture: losses against the unigram entropy, learning rate, gradient norm, speed.

What only some runs have is drawn where it is there: next-sentence accuracy, the loss of each
corpus, a batch size or a sequence length that changes, damaged packs left out, updates by layer.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np

from roberta_dist.report.layers import draw_layers, layer_updates
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
CORPUS_LOSS = "eval_loss/"
"""What the name of a corpus follows in the name of its held-out loss."""
CORPUS_STYLES = ("--", ":", "-.")
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


def last_known(columns: dict[str, Column], name: str) -> float | None:
    """The newest value of a column; None where it is missing or holds none."""
    values = columns.get(name, np.empty(0))
    known = values[np.isfinite(values)]
    return float(known[-1]) if known.size else None


def changes(values: Column) -> list[int]:
    """Where a value differs from the one before it; NaN is no value."""
    known = np.flatnonzero(np.isfinite(values))
    return [int(i) for i in known[1:][np.diff(values[known]) != 0]]


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
    if (accuracy := last_known(run.training, "nsp_accuracy")) is not None:
        parts.append(f"next sentence {accuracy:.1%} right")
    if quarantined := last_known(run.training, "quarantined_packs"):
        parts.append(f"damaged packs left out: {quarantined:.0f}")
    return " · ".join(parts)


def draw(run: RunData) -> bytes:
    """The picture of `run` as PNG bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        figure = pyplot.figure(figsize=(12, 7.2), layout="constrained")
        figure.suptitle(run.name, x=0.01, ha="left", fontsize=14, fontweight="bold")
        panels = _panels(run)
        grid = figure.add_gridspec(len(panels), 3)
        loss = figure.add_subplot(grid[:, :2])
        _draw_losses(loss, run)
        for row, (title, draw_panel) in enumerate(panels.items()):
            axes = figure.add_subplot(grid[row, 2], sharex=loss)
            axes.set_title(title)
            draw_panel(axes, run)
            axes.tick_params(labelbottom=row == len(panels) - 1)
        axes.set_xlabel("step")
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
    names = [name for name in run.held_out if name.startswith(CORPUS_LOSS)]
    for index, name in enumerate(names):
        axes.plot(
            run.held_out["step"],
            run.held_out[name],
            color=HELD_OUT,
            linestyle=CORPUS_STYLES[index % len(CORPUS_STYLES)],
            linewidth=1.0,
            label=f"held-out loss of {name.removeprefix(CORPUS_LOSS)}",
        )
    lengths = run.training.get("sequence_length", np.empty(0))
    for index in changes(lengths):
        axes.axvline(steps[index], color=ENTROPY, linestyle=":", linewidth=1.0)
        axes.annotate(
            f" {lengths[index]:.0f} tokens a row",
            (steps[index], 0.02),
            xycoords=axes.get_xaxis_transform(),
            fontsize=8,
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


def _panels(run: RunData) -> dict[str, Callable[[Any, RunData], None]]:
    """Title → what draws it, from the top down."""
    panels: dict[str, Callable[[Any, RunData], None]] = {}
    if last_known(run.training, "nsp_accuracy") is not None:
        panels["next sentence: share told right"] = _draw_accuracy
    if changes(run.training.get("global_batch_size", np.empty(0))):
        panels["rows of a batch"] = _draw_batch_size
    if layer_updates(run):
        panels["update / weights, by layer"] = draw_layers
    return panels | {
        "learning rate": _draw_rate,
        "gradient norm before clipping": _draw_gradient,
        "tokens a second, all ranks": _draw_speed,
        "seconds of a step": _draw_step_parts,
    }


def _draw_rate(axes: Any, run: RunData) -> None:
    axes.plot(run.training["step"], run.training["lr"], color=PLAIN)


def _draw_gradient(axes: Any, run: RunData) -> None:
    _draw_noisy(axes, run.training["step"], run.training["grad_norm"])


def _draw_speed(axes: Any, run: RunData) -> None:
    _draw_noisy(axes, run.training["step"], run.training["tokens_per_s"])
    axes.yaxis.set_major_formatter(lambda value, _: human_count(value))


def _draw_accuracy(axes: Any, run: RunData) -> None:
    steps, values = run.training["step"], run.training["nsp_accuracy"]
    axes.plot(steps, values, color=TRAINING, alpha=0.25, linewidth=0.8)
    axes.plot(steps, smooth(values), color=TRAINING, linewidth=1.5)
    if "eval_nsp_accuracy" in run.held_out:
        accuracy = run.held_out["eval_nsp_accuracy"]
        axes.plot(run.held_out["step"], accuracy, color=HELD_OUT, marker="o", markersize=3)
    axes.set_ylim(0, 1)


def _draw_batch_size(axes: Any, run: RunData) -> None:
    axes.step(run.training["step"], run.training["global_batch_size"], color=PLAIN, where="post")
    axes.set_ylim(bottom=0)


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
    axes.set_ylim(bottom=0)


def _draw_noisy(axes: Any, steps: Column, values: Column) -> None:
    axes.plot(steps, values, color=PLAIN, alpha=0.25, linewidth=0.8)
    axes.plot(steps, smooth(values), color=PLAIN, linewidth=1.5)
    axes.set_ylim(bottom=0)
