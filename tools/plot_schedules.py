"""Draw every learning-rate schedule from the code: `python tools/plot_schedules.py [--output PNG]`.

The default is docs/schedules.png. What is drawn is `roberta_dist.optim.schedule.learning_rate` of the
configurations below; the file carries their digest, so that a test can tell an old picture.
"""

from __future__ import annotations

import argparse
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roberta_dist.config.load import compose
from roberta_dist.config.optim import Cooldown, Decay, ScheduleConfig
from roberta_dist.config.roots import LaunchConfig
from roberta_dist.optim.schedule import learning_rate
from roberta_dist.report.picture import STYLE
from roberta_dist.runtime.files import atomic_write

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "schedules.png"
COLOURS = ("#0072B2", "#D55E00", "#009E73")
"""Okabe and Ito's, as in reports."""
DASHES = ("-", "--", ":")
STEPS, WARMUP = 1000, 100
HEADROOM = 1.4
"""Top of the axis in peaks: the legend stands above the curves."""


@dataclass(frozen=True)
class Curve:
    """A schedule with the name under which it is drawn; `peak` is `optim.lr`."""

    name: str
    schedule: ScheduleConfig
    peak: float = 1.0

    def rates(self) -> list[float]:
        """Learning rate of every step."""
        steps = range(self.schedule.max_steps)
        return [learning_rate(step, self.peak, self.schedule) for step in steps]


def _schedule(**values: Any) -> ScheduleConfig:
    return ScheduleConfig(max_steps=STEPS, warmup_steps=WARMUP, **values)


def panels() -> dict[str, list[Curve]]:
    """Title → curves, in the order of docs/schedules.md."""
    recipe = compose("launch", LaunchConfig, ["experiment=bert_large_lamb_64k"]).run
    polynomial, wsd = Decay.polynomial, Decay.wsd
    return {
        "linear": [
            Curve("to 0", _schedule()),
            Curve("to end_lr = 0.1 of the peak", _schedule(end_lr=0.1)),
        ],
        "polynomial": [
            Curve("power 0.5", _schedule(decay=polynomial, power=0.5)),
            Curve("power 2", _schedule(decay=polynomial, power=2.0)),
            Curve(
                "power 0.5, decay_in_warmup",
                _schedule(decay=polynomial, power=0.5, decay_in_warmup=True),
            ),
        ],
        "cosine": [
            Curve("to 0", _schedule(decay=Decay.cosine)),
            Curve("to end_lr = 0.1 of the peak", _schedule(decay=Decay.cosine, end_lr=0.1)),
        ],
        "inverse_sqrt": [
            Curve("warmup of 100 steps", _schedule(decay=Decay.inverse_sqrt)),
            Curve(
                "warmup of 300 steps",
                ScheduleConfig(decay=Decay.inverse_sqrt, max_steps=STEPS, warmup_steps=300),
            ),
        ],
        "wsd": [
            Curve("one_minus_sqrt", _schedule(decay=wsd, decay_fraction=0.2)),
            Curve(
                "linear",
                _schedule(decay=wsd, decay_fraction=0.2, cooldown=Cooldown.linear),
            ),
        ],
        "constant": [Curve("", _schedule(decay=Decay.constant))],
        "phases: experiment=bert_large_lamb_64k": [Curve("", recipe.schedule, recipe.optim.lr)],
    }


def digest(drawn: dict[str, list[Curve]]) -> str:
    """Of every name and rate, to six digits."""
    text = repr(
        [
            (title, curve.name, [f"{rate:.6g}" for rate in curve.rates()])
            for title, curves in drawn.items()
            for curve in curves
        ]
    )
    return hashlib.sha256(text.encode()).hexdigest()


def draw(drawn: dict[str, list[Curve]]) -> bytes:
    """The picture as PNG bytes: three panels a row, the last over a whole row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        figure = pyplot.figure(figsize=(12, 9), layout="constrained")
        grid = figure.add_gridspec(3, 3)
        for index, (title, curves) in enumerate(drawn.items()):
            last = index == len(drawn) - 1
            axes = figure.add_subplot(grid[2, :] if last else grid[divmod(index, 3)])
            axes.set_title(title)
            _draw_panel(axes, curves)
            axes.set_ylabel("learning rate" if last else "share of the peak")
            axes.set_xlabel("step")
        picture = io.BytesIO()
        metadata = {"Software": None, "Description": digest(drawn)}
        figure.savefig(picture, format="png", dpi=110, metadata=metadata)
        pyplot.close(figure)
    return picture.getvalue()


def _draw_panel(axes: Any, curves: list[Curve]) -> None:
    for curve, colour, dash in zip(curves, COLOURS, DASHES, strict=False):
        axes.plot(curve.rates(), color=colour, linestyle=dash, linewidth=1.8, label=curve.name)
        _mark_phases(axes, curve)
    if curves[0].name:
        axes.legend(loc="upper right", fontsize=8, borderaxespad=0.0)
    axes.set_ylim(0, max(curve.peak for curve in curves) * HEADROOM)
    axes.set_xlim(left=0)


def _mark_phases(axes: Any, curve: Curve) -> None:
    for phase in curve.schedule.phases:
        axes.axvline(phase.from_step, color="#555555", linestyle=":", linewidth=1.0)
        axes.annotate(
            f"the schedule begins anew at step {phase.from_step:,} ",
            (phase.from_step, 0.9),
            xycoords=axes.get_xaxis_transform(),
            ha="right",
            fontsize=8,
        )


def main() -> int:
    """Write the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=PICTURE, help="PNG to write")
    output = parser.parse_args().output
    atomic_write(output, draw(panels()))
    print(output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
