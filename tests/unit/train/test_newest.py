"""A start goes on from the newest checkpoint that is whole, and names each that is not."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from pathlib import Path

import pytest

from roberta_dist.checkpoint.format import INDEX, shard_name
from roberta_dist.config.train import CheckpointConfig
from roberta_dist.errors import ConfigError, DataFault
from roberta_dist.runtime.rundir import COMPLETE, RunPaths, complete_steps
from roberta_dist.runtime.world import World
from roberta_dist.train.newest import newest_whole, refuse_anew

sys.path.insert(0, str(Path(__file__).parents[1] / "checkpoint"))
from test_writer import save

pytestmark = pytest.mark.unit
SHARD = shard_name(0)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-3])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "a truncated shard": (SHARD, truncate, "COMPLETE says"),
    "a flipped bit": (SHARD, flip, "sha256 differs"),
    "a flipped bit in the index": (INDEX, flip, "sha256 differs"),
    "a missing shard": (SHARD, Path.unlink, "missing"),
    "a missing marker": (COMPLETE, Path.unlink, "has no COMPLETE marker"),
    "half a marker": (COMPLETE, truncate, "COMPLETE"),
    "another marker": (COMPLETE, lambda path: path.write_text(json.dumps([1])), "is no marker"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_one_is_named_and_the_one_before_taken(tmp_path, caplog, name):
    file, damage, told = DAMAGES[name]
    save(tmp_path, 10, 1.0)
    newest = save(tmp_path, 20, 2.0)
    assert newest_whole(tmp_path, CheckpointConfig(), World()).step == 20
    damage(newest / file)
    with pytest.raises(DataFault, match=r"checkpoint\.strict=true"):
        newest_whole(tmp_path, CheckpointConfig(strict=True), World())
    with caplog.at_level(logging.WARNING):
        assert newest_whole(tmp_path, CheckpointConfig(), World()).step == 10
    assert "step_00000020" in caplog.text and told in caplog.text
    assert "step_00000010" in caplog.text
    assert complete_steps(tmp_path) == [10]
    assert (tmp_path / "damaged_step_00000020").is_dir()


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(tmp_path):
    assert newest_whole(tmp_path / "none", CheckpointConfig(), World()) is None
    for step in (10, 20):
        flip(save(tmp_path, step, 1.0) / SHARD)
    with pytest.raises(DataFault, match="no checkpoint is whole"):
        newest_whole(tmp_path, CheckpointConfig(), World())


def test_a_run_whose_checkpoints_are_gone_does_not_begin_anew(tmp_path):
    paths = RunPaths(tmp_path)
    refuse_anew(paths)
    line = "2026-01-01T00:00:00 attempt_{0} step={1} world_size=2 removed_metrics=0 changes: none\n"
    paths.attempts_log.write_text(line.format("000", 0))
    refuse_anew(paths)
    paths.attempts_log.write_text(line.format("000", 0) + line.format("001", 40) + "cut off")
    with pytest.raises(ConfigError, match="went on from step 40 before"):
        refuse_anew(paths)


def test_one_of_another_version_is_no_damage(tmp_path):
    """Read by the wrong version of this library: nothing is set aside, and no older one is taken."""
    save(tmp_path, 10, 1.0)
    newest = save(tmp_path, 20, 2.0)
    index = json.loads((newest / INDEX).read_text())
    (newest / INDEX).write_text(json.dumps(index | {"format_version": 9}))
    marker = json.loads((newest / COMPLETE).read_text())
    data = (newest / INDEX).read_bytes()
    marker["files"][INDEX] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (newest / COMPLETE).write_text(json.dumps(marker))
    with pytest.raises(ConfigError, match="format_version=9"):
        newest_whole(tmp_path, CheckpointConfig(), World())
    assert complete_steps(tmp_path) == [10, 20]


def test_what_a_kill_left_is_cleared(tmp_path):
    """Killed while one took another's place, and while one was written."""
    save(tmp_path, 10, 1.0).rename(tmp_path / ".replaced_step_00000010")
    (tmp_path / ".tmp_step_00000020" / "shards").mkdir(parents=True)
    assert newest_whole(tmp_path, CheckpointConfig(), World()).step == 10
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000010"]
