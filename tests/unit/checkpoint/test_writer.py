"""What is written is what the marker says and what the safetensors library reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from roberta_dist.checkpoint import writer
from roberta_dist.checkpoint.format import shard_name, step_folder, temporary_folder
from roberta_dist.checkpoint.reader import load_weights, verify
from roberta_dist.checkpoint.writer import FileSum, finish_checkpoint, write_tensors
from roberta_dist.errors import StorageError
from roberta_dist.runtime.files import file_sha256
from roberta_dist.runtime.rundir import complete_steps

pytestmark = pytest.mark.unit


def arrays(count=3, length=1000):
    rng = np.random.default_rng(1)
    return {f"weight/a.{i}.b@0": rng.random(length + i, dtype=np.float32) for i in range(count)}


@pytest.mark.parametrize("piece", [7, 4096, 1 << 22])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_library_reads_what_is_written(tmp_path, monkeypatch, piece, count):
    monkeypatch.setattr(writer, "PIECE", piece)
    path = tmp_path / "shards" / "rank.safetensors"
    tensors = arrays(count)
    told = write_tensors(path, tensors)
    assert told == FileSum(path.stat().st_size, file_sha256(path))
    found = load_file(path)
    assert found.keys() == tensors.keys()
    assert all(np.array_equal(found[name], tensors[name]) for name in tensors)


def test_a_full_disk_is_named():
    with pytest.raises(StorageError, match="/dev/full: no space left"):
        write_tensors(Path("/dev/full"), arrays())


def save(checkpoints, step, value):
    temporary, final = temporary_folder(checkpoints, step), step_folder(checkpoints, step)
    weight = np.full(12, value, dtype=np.float32)
    told = write_tensors(temporary / shard_name(0), {"weight/w@0": weight})
    entry = {"name": "w", "start": 0, "length": 12, "file": shard_name(0)}
    index = {"step": step, "kinds": ["weight"], "shapes": {"w": [3, 4]}, "fragments": [entry]}
    finish_checkpoint(temporary, final, index, {}, "{}", {shard_name(0): told})
    return final


def test_the_marker_covers_every_file_and_a_name_is_taken_over(tmp_path):
    final = save(tmp_path, 7, 1.0)
    verify(final)
    assert (load_weights(final)["w"] == 1.0).all()
    assert save(tmp_path, 7, 2.0) == final
    assert (load_weights(final)["w"] == 2.0).all()
    assert complete_steps(tmp_path) == [7]
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000007"]
