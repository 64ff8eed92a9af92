"""Checkpoints are checked before they are believed, and nothing in them is executed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from roberta_dist.checkpoint import reader
from roberta_dist.checkpoint.format import fragment_key
from roberta_dist.checkpoint.reader import (
    FragmentReader,
    find_checkpoint,
    latest_checkpoint,
    load_weights,
    open_checkpoint,
    verify,
)
from roberta_dist.errors import ConfigError, DataFault
from roberta_dist.runtime.rundir import complete_steps

pytestmark = pytest.mark.unit
WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4)


def seal(folder):
    """Write COMPLETE for the files as they are now."""
    files = {
        str(path.relative_to(folder)): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "COMPLETE"
    }
    (folder / "COMPLETE").write_text(json.dumps({"format_version": 1, "files": files}))


def write_checkpoint(run_dir, step=7, ranges=((0, 5), (5, 7))):
    """A checkpoint of one parameter, cut into fragments, one file each."""
    folder = run_dir / "checkpoints" / f"step_{step:08d}"
    (folder / "shards").mkdir(parents=True)
    fragments = []
    for rank, (start, length) in enumerate(ranges):
        file = f"shards/rank_{rank:05d}.safetensors"
        part = WEIGHT.reshape(-1)[start : start + length]
        save_file({fragment_key("weight", "w", start): part.copy()}, folder / file)
        fragments.append({"name": "w", "start": start, "length": length, "file": file})
    index = {"format_version": 1, "step": step, "kinds": ["weight"], "shapes": {"w": [3, 4]}}
    (folder / "index.json").write_text(json.dumps(index | {"fragments": fragments}))
    (folder / "train_state.json").write_text("{}")
    (folder / "config.yaml").write_text("{}")
    seal(folder)
    return folder


def test_fragments_join_into_the_parameter(tmp_path):
    folder = write_checkpoint(tmp_path)
    assert np.array_equal(load_weights(folder)["w"], WEIGHT)
    reader = FragmentReader(open_checkpoint(folder))
    assert reader.read("weight", "w", 3, 6).tolist() == [3, 4, 5, 6, 7, 8]


def test_newest_complete_one_is_found(tmp_path):
    for step in (3, 20, 7):
        write_checkpoint(tmp_path, step)
    (tmp_path / "checkpoints" / "step_00000020" / "COMPLETE").unlink()
    (tmp_path / "checkpoints" / ".tmp_step_00000099").mkdir()
    assert complete_steps(tmp_path / "checkpoints") == [3, 7]
    assert latest_checkpoint(tmp_path) == find_checkpoint(tmp_path, None)
    assert find_checkpoint(tmp_path, 3).name == "step_00000003"
    with pytest.raises(ConfigError, match=r"step 20 \(complete: \[3, 7\]\)"):
        find_checkpoint(tmp_path, 20)


@pytest.mark.parametrize("damage", ["flip", "cut", "missing"])
@pytest.mark.parametrize("file", ["shards/rank_00001.safetensors", "index.json"])
def test_damage_is_named(tmp_path, damage, file):
    folder = write_checkpoint(tmp_path)
    path = folder / file
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[:-1])
    else:
        path.unlink()
    with pytest.raises(DataFault, match=file.split("/")[-1]):
        load_weights(folder)


def test_gaps_and_overlaps_are_refused(tmp_path):
    for number, ranges in enumerate([((0, 5), (6, 6)), ((0, 6), (5, 7)), ((0, 5),)]):
        folder = write_checkpoint(tmp_path / str(number), ranges=ranges)
        with pytest.raises(DataFault, match=r"gap or an overlap|has 5 elements"):
            open_checkpoint(folder)


class Planted:
    def __reduce__(self):
        return os.system, ("touch PLANTED",)


def test_a_planted_pickle_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_checkpoint(tmp_path)
    (folder / "shards" / "rank_00001.safetensors").write_bytes(pickle.dumps(Planted()))
    (folder / "extra.pt").write_bytes(pickle.dumps(Planted()))
    with pytest.raises(DataFault, match="rank_00001"):
        load_weights(folder)
    seal(folder)  # even with fitting checksums
    with pytest.raises(DataFault, match="not a safetensors file"):
        load_weights(folder)
    assert not (tmp_path / "PLANTED").exists()


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd"])
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    folder = write_checkpoint(tmp_path)
    marker = json.loads((folder / "COMPLETE").read_text())
    marker["files"][name] = {"bytes": 1, "sha256": ""}
    (folder / "COMPLETE").write_text(json.dumps(marker))
    with pytest.raises(DataFault, match="outside the checkpoint"):
        verify(folder)


def test_links_are_refused(tmp_path):
    folder = write_checkpoint(tmp_path)
    shard = folder / "shards" / "rank_00000.safetensors"
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataFault, match="outside the checkpoint"):
        verify(folder)


def test_another_format_version_is_refused(tmp_path):
    folder = write_checkpoint(tmp_path)
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index | {"format_version": 2}))
    seal(folder)
    with pytest.raises(ConfigError, match="format_version=2"):
        open_checkpoint(folder)


def test_what_cannot_be_read_or_is_not_in_the_marker_is_a_fault(tmp_path, monkeypatch):
    folder = write_checkpoint(tmp_path)
    with pytest.raises(DataFault, match=r"says nothing of other\.yaml"):
        verify(folder, ["other.yaml"])

    def refuse(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(reader, "file_sha256", refuse)
    with pytest.raises(DataFault, match="Input/output error"):
        verify(folder)
