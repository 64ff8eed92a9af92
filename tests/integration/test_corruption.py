"""Random damage of every kind is named; damage that no pack lies in changes no row."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from corruption import KINDS, build_split, corrupt, run, summary

from roberta_dist.corpus.manifest import Manifest, read_manifest, write_manifest
from roberta_dist.errors import DataFault
from roberta_dist.stream.packs import check_disjoint

TOOL = Path(__file__).resolve().parents[2] / "tools" / "verify_shards.py"


def verify(corpus: Path, *arguments: str) -> tuple[int, dict[str, int], str]:
    """Exit code, the last line, everything else."""
    done = subprocess.run(
        [sys.executable, str(TOOL), str(corpus), *arguments],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    lines = done.stdout.strip().split("\n")
    return done.returncode, json.loads(lines[-1]), "\n".join(lines[:-1]) + done.stderr


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    build_split(tmp_path / "train")
    build_split(tmp_path / "held_out", seed=2)
    return tmp_path


def test_no_random_corruption_goes_unnoticed(tmp_path):
    verdicts = run(2 * len(KINDS), 3, tmp_path)
    counts = summary(verdicts)
    wrong = [verdict for verdict in verdicts if verdict.undetected]
    assert not wrong
    assert counts["named_by_verify_shards"] == counts["corruptions"] == 2 * len(KINDS)
    assert counts["payload_damaged"] == counts["payload_damaged_named_by_reader"] > 8
    assert counts["payload_whole_rows_identical"] > 4
    assert counts["webdataset_silent"] > 8  # what the check is for


def test_a_whole_corpus_passes(corpus):
    code, last, rest = verify(corpus, "--sha256", "--workers", "2")
    assert (code, last) == (0, {"packs": 80, "shards": 8, "bad": 0})
    assert "BAD" not in rest


def test_every_bad_pack_of_both_splits_is_named(corpus):
    rng = np.random.default_rng(0)
    damaged = [corrupt(rng, read_manifest(corpus / split), 0) for split in ("train", "held_out")]
    code, last, rest = verify(corpus)
    assert (code, last["bad"]) == (3, 2)
    for split, corruption in zip(("train", "held_out"), damaged, strict=True):
        (pack,) = corruption.packs
        entry = read_manifest(corpus / split).packs[pack]
        place = f"{split}/{corruption.shard}: pack {pack} at offset {int(entry['offset'])}"
        assert f"BAD {corpus}/{place}: crc32 differs" in rest


def test_what_is_no_corpus_is_refused(tmp_path):
    code, last, rest = verify(tmp_path)
    assert code == 2 and last["packs"] == 0 and "no manifest.json" in rest


@pytest.mark.parametrize("column", ["documents", "sentences", "tokens", "blocks_128", "blocks_512"])
def test_counts_that_differ_are_named(corpus, column):
    manifest = read_manifest(corpus / "train")
    packs = np.array(manifest.packs)
    packs[column][7] += 1
    write_manifest(Manifest(**{**vars(manifest), "packs": packs}))
    code, last, rest = verify(corpus)
    assert code == 3 and f"pack 7 at offset {packs['offset'][7]}: {column}=" in rest
    assert last["bad"] == (2 if column == "tokens" else 1)  # the sum differs as well


def test_the_hash_of_a_shard_is_checked_on_request(corpus):
    path = corpus / "train" / "shard-000001.tar"
    manifest = read_manifest(corpus / "train")
    shards = tuple(
        type(shard)(shard.name, shard.bytes, "0" * 64 if shard.name == path.name else shard.sha256)
        for shard in manifest.shards
    )
    write_manifest(Manifest(**{**vars(manifest), "shards": shards}))
    assert verify(corpus)[0] == 0
    code, _, rest = verify(corpus, "--sha256")
    assert code == 3 and f"BAD {path} at offset 0: sha256 differs from the manifest's" in rest


@pytest.mark.parametrize(
    "name", ["../train/x.tar", "/etc/passwd", "a/b.tar", "..", "", "-rf", "$(id).tar", "a b", "a\n"]
)
def test_a_shard_name_that_leads_elsewhere_is_refused(corpus, name):
    path = corpus / "train" / "manifest.json"
    values = json.loads(path.read_text())
    values["shards"][0]["name"] = name
    path.write_text(json.dumps(values))
    with pytest.raises(DataFault, match="is not a plain file name"):
        read_manifest(corpus / "train")


def test_a_shard_in_both_splits_is_refused(corpus):
    train, held_out = (read_manifest(corpus / split) for split in ("train", "held_out"))
    check_disjoint(train, held_out)
    both = Manifest(**{**vars(held_out), "shards": (held_out.shards[0], train.shards[2])})
    with pytest.raises(DataFault, match=r"held_out: shard-000002\.tar also in .*train"):
        check_disjoint(train, both)
