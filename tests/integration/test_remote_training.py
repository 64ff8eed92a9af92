"""A run from S3 and from a web server is the run from disk, bit for bit, also when it is killed."""

from __future__ import annotations

from pathlib import Path

import pytest
import remote_support
import run_support
from serving import http_server

from roberta_dist.corpus.manifest import open_manifest
from roberta_dist.corpus.opening import open_store
from roberta_dist.corpus.storage import ReadOptions
from roberta_dist.corpus.tokenizer_folder import FILES, local_tokenizer
from roberta_dist.errors import DataFault


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_support.prepare_corpus(tmp_path_factory.mktemp("remote") / "mine")


@pytest.fixture(scope="module")
def from_disk(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return remote_support.run_from_disk(tmp_path_factory.mktemp("disk") / "run", corpus)


@pytest.mark.world
@pytest.mark.parametrize("kind", ["s3", "http"])
def test_a_server_killed_and_restarted_mid_run_changes_no_metric(corpus, from_disk, tmp_path, kind):
    run_dir = remote_support.run_from_server(kind, corpus, tmp_path, kill=True)
    assert remote_support.same_metrics(run_dir, from_disk)


def test_the_tokenizer_of_a_remote_corpus_is_copied_once_and_checked(corpus, tmp_path):
    with http_server(corpus) as server:
        store = open_store(server.url, ReadOptions(5.0, str(tmp_path / "cache")))
        sha256 = open_manifest(store.child("train")).tokenizer_sha256
        folder = local_tokenizer(store, sha256)
        for name in FILES:
            assert (folder / name).read_bytes() == (corpus / "tokenizer" / name).read_bytes()
        before = len(server.faults.requests)
        assert local_tokenizer(store, sha256) == folder
        assert len(server.faults.requests) == before
        with pytest.raises(DataFault, match="not the tokenizer that the manifest names"):
            local_tokenizer(store, "0" * 64)
        assert [path.name for path in folder.parent.iterdir()] == [sha256]
    assert local_tokenizer(open_store(str(corpus)), sha256) == corpus / "tokenizer"
