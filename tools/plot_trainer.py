"""Draw what tools/compare_trainer.py found: `python tools/plot_trainer.py RESULT.json [--output PNG]`.

The default is docs/loss_vs_trainer.png: every seed's loss by step and by time, and how far the mean curves
are apart beside how far seeds are apart.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from roberta_dist.report.picture import HELD_OUT, STYLE, TRAINING, smooth
from roberta_dist.runtime.files import atomic_write

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "loss_vs_trainer.png"
SIDES = (
    ("roberta_dist", "ours", "ours_s", TRAINING, "-"),
    ("transformers.Trainer", "theirs", "hf_s", HELD_OUT, "--"),
)
"""Name, keys of losses and seconds, colour, dash."""


def draw(result: dict[str, Any]) -> bytes:
    """The picture as PNG bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        figure = pyplot.figure(figsize=(12, 6), layout="constrained")
        figure.suptitle(result["size"], x=0.01, ha="left", fontsize=11)
        grid = figure.add_gridspec(2, 3)
        by_step = figure.add_subplot(grid[:, :2])
        by_time = figure.add_subplot(grid[1, 2])
        _draw_losses(by_step, by_time, result)
        _draw_between(figure.add_subplot(grid[0, 2]), result)
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=110, metadata={"Software": None})
        pyplot.close(figure)
    return picture.getvalue()


def _draw_losses(by_step: Any, by_time: Any, result: dict[str, Any]) -> None:
    for name, losses, seconds, colour, dash in SIDES:
        for seed, curve in enumerate(result[losses]):
            steps = np.arange(1, len(curve) + 1)
            look = {"color": colour, "linestyle": dash, "linewidth": 1.2}
            label = (
                None if seed else f"{name}, {len(result[losses])} seeds, {result[seconds]:.0f} s"
            )
            by_step.plot(steps, smooth(np.array(curve)), label=label, **look)
            by_time.plot(steps / steps[-1] * result[seconds], smooth(np.array(curve)), **look)
    by_step.set(title="loss by step", xlabel="step", ylabel="cross-entropy, nats a masked token")
    by_step.legend(loc="upper right")
    by_time.set(title="loss by time", xlabel="seconds")


def _draw_between(axes: Any, result: dict[str, Any]) -> None:
    edges = np.linspace(0, len(result["ours"][0]), len(result["spreads"]) + 1)
    axes.stairs(result["spreads"], edges, fill=True, color="#cccccc", label="range of seeds")
    axes.axhline(
        result["noise"], color="#777777", linewidth=1, linestyle="--", label="their median"
    )
    axes.stairs(result["differences"], edges, color=TRAINING, linewidth=1.5, label="between means")
    axes.set(title="nats apart, means of 50 steps", xlabel="step")
    axes.set_ylim(0, 1.4 * max(*result["spreads"], *result["differences"], 1e-3))
    axes.legend(loc="upper left", fontsize=8)


def main() -> int:
    """Write the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("result", type=Path, help="result.json of tools/compare_trainer.py")
    parser.add_argument("--output", type=Path, default=PICTURE, help="PNG to write")
    arguments = parser.parse_args()
    atomic_write(arguments.output, draw(json.loads(arguments.result.read_text())))
    print(arguments.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
