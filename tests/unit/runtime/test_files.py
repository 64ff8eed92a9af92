from __future__ import annotations

import pytest

from roberta_dist.errors import ConfigError, StorageError
from roberta_dist.runtime.files import atomic_write, write_json
from roberta_dist.runtime.world import World, detect_world

pytestmark = pytest.mark.unit


def test_a_full_disk_leaves_the_old_file_and_names_the_path(tmp_path):
    path = tmp_path / "state.json"
    atomic_write(path, "old")
    with pytest.raises(StorageError, match="no space left"):
        atomic_write(_on_full_disk(tmp_path), "new")
    assert path.read_text() == "old"


def _on_full_disk(tmp_path):
    """/dev/full refuses every write with ENOSPC; reached through a link that stands for the file."""
    link = tmp_path / "full"
    link.mkdir()
    target = link / "file"
    (link / f".file.tmp-{__import__('os').getpid()}").symlink_to("/dev/full")
    return target


def test_a_path_under_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        atomic_write(tmp_path / "file" / "below", "x")


def test_equal_values_give_equal_bytes(tmp_path):
    write_json(tmp_path / "a", {"b": 1, "a": [1, 2]})
    write_json(tmp_path / "b", {"a": [1, 2], "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_world_from_environment():
    assert detect_world({}) == World()
    assert detect_world({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}) == World(1, 2, 1)
    with pytest.raises(ConfigError, match="WORLD_SIZE=2"):
        detect_world({"RANK": "2", "WORLD_SIZE": "2"})
    with pytest.raises(ConfigError, match="integers"):
        detect_world({"RANK": "x"})
