"""The panel of what was measured layer by layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from roberta_dist.report.read import Column, RunData

LAYER_UPDATE = "layer_update_ratio/"
"""What a layer follows in the name of the size of its update over that of its weights."""


def layer_updates(run: RunData) -> dict[str, tuple[Column, Column]]:
    """Layer → steps and ‖update‖ / ‖weights‖, where measured; the layers in their order."""
    layers = [name.removeprefix(LAYER_UPDATE) for name in run.training if LAYER_UPDATE in name]
    layers.sort(key=lambda layer: int(layer.rpartition(".")[2]) if "." in layer else -1)
    columns = {layer: run.training[LAYER_UPDATE + layer] for layer in layers}
    known = {layer: np.isfinite(values) for layer, values in columns.items()}
    steps = run.training["step"]
    return {layer: (steps[known[layer]], columns[layer][known[layer]]) for layer in layers}


def draw_layers(axes: Any, run: RunData) -> None:
    """The first layer is dark, the last light; embeddings and head are dashed."""
    measured = layer_updates(run)
    for index, (layer, (steps, values)) in enumerate(measured.items()):
        inner = layer.startswith("layers.")
        axes.plot(
            steps,
            values,
            color=(0, 0.3 + 0.6 * index / len(measured), 0.5) if inner else None,
            linestyle="-" if inner else "--",
            linewidth=1,
            label=None if inner else layer,
        )
    axes.set_yscale("log")
    axes.legend(loc="upper right", fontsize=7)
