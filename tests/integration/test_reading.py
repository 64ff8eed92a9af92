"""Corpora on real HTTP and S3 servers: what a run reads from them, and what their faults become.

The rows of the study's table of failure modes that concern reading, each injected.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from threading import Timer

import numpy as np
import pytest
from corruption import build_split
from serving import (
    AWS_ENVIRONMENT,
    RangeServer,
    ServerProcess,
    free_port,
    http_server,
)

from roberta_dist.config.data import InputFormat
from roberta_dist.corpus.manifest import Manifest, open_manifest, read_manifest
from roberta_dist.corpus.opening import open_store
from roberta_dist.corpus.storage import ReadOptions, Store
from roberta_dist.errors import ConfigError, DataFault, PackFault
from roberta_dist.stream.counts import block_counts
from roberta_dist.stream.packs import PackReader, check_shards


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    build_split(tmp_path / "mine" / "train")
    return tmp_path / "mine"


@pytest.fixture
def server(corpus: Path) -> Iterator[RangeServer]:
    with http_server(corpus) as server:
        yield server


def opened(path: str, tmp_path: Path, retry_s: float = 20.0) -> Store:
    return open_store(path, ReadOptions(retry_s, str(tmp_path / "cache")))


def train(server: RangeServer, tmp_path: Path, retry_s: float = 20.0) -> Manifest:
    return open_manifest(opened(server.url, tmp_path, retry_s).child("train"))


def tokens(manifest: Manifest) -> list[list[int]]:
    reader = PackReader(manifest)
    return [reader.read(index).tokens.tolist() for index in range(len(manifest.packs))]


@pytest.mark.parametrize("kind", ["http", "s3", "pipe"])
def test_every_way_reads_the_same(corpus, tmp_path, monkeypatch, kind):
    for name, value in AWS_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    local = read_manifest(corpus / "train")
    if kind == "pipe":
        check_same(local, opened(f"pipe:cat {corpus}/{{}}", tmp_path))
        return
    with ServerProcess(kind, corpus, tmp_path / "server.log") as process:
        monkeypatch.setenv("AWS_ENDPOINT_URL", process.endpoint)
        check_same(local, opened(process.data_path, tmp_path))


def check_same(local: Manifest, store: Store) -> None:
    remote = open_manifest(store.child("train"))
    check_shards(remote)
    assert remote.sha256 == local.sha256 and np.array_equal(remote.packs, local.packs)
    assert tokens(remote) == tokens(local)
    counts = block_counts(remote, InputFormat.full_sentences, 100)
    assert np.array_equal(counts, block_counts(local, InputFormat.full_sentences, 100))
    with pytest.raises(ConfigError, match=r"none: no manifest\.json, so not a prepared split"):
        open_manifest(open_store(str(local.folder.parent)).child("none"))


def test_block_counts_of_a_remote_corpus_are_kept(server, tmp_path):
    manifest = train(server, tmp_path)
    block_counts(manifest, InputFormat.full_sentences, 100)
    before = len(server.faults.requests)
    block_counts(manifest, InputFormat.full_sentences, 100)
    assert len(server.faults.requests) == before


# Missing shards


@pytest.mark.parametrize("where", ["local", "http"])
def test_missing_and_resized_shards_are_listed_before_the_run(corpus, server, tmp_path, where):
    (corpus / "train" / "shard-000001.tar").unlink()
    with open(corpus / "train" / "shard-000003.tar", "ab") as shard:
        shard.write(b"more")
    local = where == "local"
    manifest = read_manifest(corpus / "train") if local else train(server, tmp_path)
    with pytest.raises(DataFault) as caught:
        check_shards(manifest)
    assert "shard-000001.tar: missing, the manifest says" in caught.value.problem
    assert "shard-000003.tar: " in caught.value.problem and "shard-000002" not in str(caught.value)
    found = []
    for rank in range(3):
        try:
            check_shards(manifest, rank, 3)
        except DataFault as fault:
            found += fault.problem.split("\n")
    assert sorted(line.strip() for line in found) == sorted(
        line.strip() for line in caught.value.problem.split("\n")
    )
    with pytest.raises(PackFault, match="the shard is missing") as missing:
        PackReader(manifest, "wiki").read(12)
    fault = missing.value
    assert (fault.corpus, fault.shard, fault.pack) == ("wiki", "shard-000001.tar", 12)
    assert fault.offset == manifest.packs["offset"][12]


# Passing failures


@pytest.mark.parametrize(
    "faults", [["drop"], ["short"], ["busy"], ["flip"], ["drop", "busy", "short"]]
)
def test_a_passing_failure_changes_nothing(corpus, server, tmp_path, caplog, faults):
    manifest = train(server, tmp_path)
    server.faults.ahead += faults
    with caplog.at_level(logging.WARNING):
        data = PackReader(manifest).read(3).tokens
    assert data.tolist() == PackReader(read_manifest(corpus / "train")).read(3).tokens.tolist()
    assert not server.faults.ahead
    assert len(caplog.records) == len([fault for fault in faults if fault != "flip"])


def test_a_server_that_falls_silent_is_asked_again(corpus, server, tmp_path):
    manifest = train(server, tmp_path, retry_s=1.5)  # also how long silence is borne
    server.faults.ahead += ["hang"]
    data = PackReader(manifest).read(3).tokens
    assert data.tolist() == PackReader(read_manifest(corpus / "train")).read(3).tokens.tolist()
    assert [method for method, _ in server.faults.requests[-2:]] == ["GET", "GET"]


def test_a_server_that_comes_back_in_time_changes_nothing(corpus, tmp_path):
    port = free_port()
    with http_server(corpus, port) as first:
        manifest = train(first, tmp_path)
        reader = PackReader(manifest)
        expected = reader.read(5).tokens.tolist()
    first.close_all()
    again = http_server(corpus, port)
    timer = Timer(1.0, again.__enter__)
    timer.start()
    try:
        assert reader.read(5).tokens.tolist() == expected
    finally:
        timer.join()
        again.__exit__(None, None, None)


def test_a_server_that_stays_away_names_the_pack(corpus, tmp_path):
    with http_server(corpus) as server:
        manifest = train(server, tmp_path, retry_s=0.3)
        reader = PackReader(manifest)
    server.close_all()
    with pytest.raises(
        PackFault, match=r"shard-000000\.tar: pack 5 at offset \d+: cannot be read"
    ) as away:
        reader.read(5)
    assert not away.value.damaged


@pytest.mark.parametrize("name", ["forbidden", "none"])
def test_403_and_404_are_not_tried_again(server, tmp_path, name):
    store = opened(server.url, tmp_path, retry_s=60)
    with pytest.raises((PermissionError, FileNotFoundError), match=f"{server.url}/{name}: "):
        store.read_range(name, 0, 10)
    assert len(server.faults.requests) == 1


def test_a_server_without_ranges_is_refused(server, tmp_path):
    manifest = train(server, tmp_path, retry_s=60)
    server.faults.ahead += ["whole"]
    with pytest.raises(PackFault, match=r"it ignores Range; give data\.path with \{\}"):
        PackReader(manifest).read(0)


def test_bytes_that_stay_wrong_are_a_fault(server, tmp_path):
    manifest = train(server, tmp_path)
    server.faults.ahead += ["flip", "flip"]
    with pytest.raises(PackFault, match=r"pack 4 at offset .*: crc32 differs from the manifest's"):
        PackReader(manifest).read(4)


# Damaged and replaced shards


@pytest.mark.parametrize("where", ["local", "http"])
def test_a_cut_shard_is_named(corpus, server, tmp_path, where):
    manifest = read_manifest(corpus / "train") if where == "local" else train(server, tmp_path)
    reader = PackReader(manifest)
    reader.read(0)
    offset = int(manifest.packs["offset"][9])
    with open(corpus / "train" / "shard-000000.tar", "r+b") as shard:
        shard.truncate(offset + 100)
    reader.read(8)
    with pytest.raises(PackFault, match=rf"pack 9 at offset {offset}: .*the manifest says") as cut:
        reader.read(9)
    assert (cut.value.shard, cut.value.pack, cut.value.offset) == ("shard-000000.tar", 9, offset)


@pytest.mark.parametrize("where", ["local", "http"])
def test_a_shard_replaced_during_the_run_is_named_as_such(corpus, server, tmp_path, where):
    manifest = read_manifest(corpus / "train") if where == "local" else train(server, tmp_path)
    reader = PackReader(manifest)
    reader.read(0)
    build_split(tmp_path / "other", seed=1)  # valid, of the same size
    other = (tmp_path / "other" / "shard-000000.tar").read_bytes()
    (corpus / "train" / "shard-000000.tar").write_bytes(other)
    with pytest.raises(PackFault, match="replaced or changed since this run first read it"):
        reader.read(1)
    reader.read(10)  # of another shard


def test_a_copy_of_the_same_bytes_is_no_change(corpus, server, tmp_path):
    for manifest in (read_manifest(corpus / "train"), train(server, tmp_path)):
        reader = PackReader(manifest)
        before = reader.read(0).tokens.tolist()
        path = corpus / "train" / "shard-000000.tar"
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)
        assert reader.read(0).tokens.tolist() == before


def test_a_manifest_that_changed_under_the_corpus_is_refused(corpus, server, tmp_path):
    build_split(tmp_path / "other", seed=1)
    (corpus / "train" / "packs.npy").write_bytes((tmp_path / "other" / "packs.npy").read_bytes())
    for open_it in (lambda: read_manifest(corpus / "train"), lambda: train(server, tmp_path)):
        with pytest.raises(DataFault, match=r"manifest\.json: damaged .*packs\.npy"):
            open_it()


# Streamed corpora


def test_a_streamed_corpus_larger_than_its_cache_still_reads(corpus, tmp_path, caplog):
    local = read_manifest(corpus / "train")
    gib = 1.2 * max(shard.bytes for shard in local.shards) / 2**30
    options = ReadOptions(20.0, str(tmp_path / "cache"), gib)
    with caplog.at_level(logging.WARNING):
        remote = open_manifest(open_store(f"pipe:cat {corpus}/{{}}", options).child("train"))
        check_shards(remote)
    assert "streamed again and again" in caplog.text
    assert tokens(remote) == tokens(local)
    kept = sum(path.stat().st_size for path in (tmp_path / "cache" / "content").iterdir())
    assert kept <= options.cache_bytes


def test_a_streamed_shard_that_was_replaced_is_refused_before_the_run(corpus, tmp_path):
    build_split(tmp_path / "other", seed=1)
    other = (tmp_path / "other" / "shard-000002.tar").read_bytes()
    (corpus / "train" / "shard-000002.tar").write_bytes(other)
    remote = open_manifest(opened(f"pipe:cat {corpus}/{{}}", tmp_path).child("train"))
    with pytest.raises(DataFault, match=r"train/shard-000002\.tar: .*the manifest names"):
        check_shards(remote)
