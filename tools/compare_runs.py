"""Say where two runs differ: `python tools/compare_runs.py RUN_A RUN_B`.

Compares the deterministic columns of metrics.jsonl (roberta_dist/track/names.py) step by step, and the
weights and moments of the checkpoints that both have. Two runs of one configuration at the same world
size must agree in every digit, however often one of them was killed. Exit code 0: they do, over what
both have; 1: they do not, and the first step and tensor that differ are told.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from roberta_dist.checkpoint.format import step_folder
from roberta_dist.checkpoint.reader import FragmentReader, open_checkpoint
from roberta_dist.runtime.rundir import complete_steps
from roberta_dist.track.names import is_deterministic

Columns = dict[int, dict[str, Any]]


def read(run_dir: Path) -> Columns:
    """Step → its deterministic columns."""
    columns: Columns = {}
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        kept = {name: value for name, value in values.items() if is_deterministic(name)}
        columns.setdefault(values["step"], {}).update(kept)
    return columns


def first_differences(left: Columns, right: Columns) -> list[str]:
    """One line a column: the first step at which it differs, with both values."""
    found: dict[str, str] = {}
    for step in sorted(left.keys() & right.keys()):
        for name in sorted(left[step].keys() | right[step].keys()):
            ours, theirs = left[step].get(name), right[step].get(name)
            if ours != theirs:
                found.setdefault(name, f"{name}: first at step {step}: {ours} and {theirs}")
    return list(found.values())


def first_tensor(left: Path, right: Path) -> str | None:
    """The first tensor that differs, in the first checkpoint of both where one does."""
    folders = [run_dir / "checkpoints" for run_dir in (left, right)]
    common = set(complete_steps(folders[0])) & set(complete_steps(folders[1]))
    for step in sorted(common):
        ours, theirs = (open_checkpoint(step_folder(folder, step)) for folder in folders)
        readers = [FragmentReader(ours), FragmentReader(theirs)]
        for name, shape in ours.shapes.items():
            for kind in ours.kinds:
                values = [reader.read(kind, name, 0, math.prod(shape)) for reader in readers]
                different = values[0].view(np.uint32) != values[1].view(np.uint32)
                if different.any():
                    return (
                        f"checkpoint of step {step}: {kind} of {name} differs in {different.sum()} of "
                        f"{different.size} elements, by {np.abs(values[0] - values[1]).max():.3g} at most"
                    )
    return None


def main(arguments: list[str]) -> int:
    """Compare the two run folders in `arguments`."""
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    left, right = (read(Path(folder)) for folder in arguments)
    differences = first_differences(left, right)
    tensor = first_tensor(*map(Path, arguments))
    differences += [tensor] if tensor else []
    if not left.keys() & right.keys():
        differences.append("no step is common to both")
    print(f"{len(left.keys() & right.keys())} common steps ({len(left)} and {len(right)})")
    print("\n".join(differences) or "no difference")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
