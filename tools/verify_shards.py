"""Check every byte of a prepared corpus: `python tools/verify_shards.py CORPUS [--sha256]`.

CORPUS is a folder or any other value of `data.path` (s3://, https://, pipe:... {}). Both splits are
read whole, in parallel over shards: size, each pack's crc32 and contents, counts, tar headers,
padding and end of archive; with --sha256 also the hash of each file. Every bad shard, pack and
offset is named. The last line is JSON: {"packs": ..., "shards": ..., "bad": ...}, where `bad`
counts findings. Exit code 0: nothing is wrong; 3: something is; 2: not a prepared corpus.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from roberta_dist.corpus.manifest import Manifest, open_manifest
from roberta_dist.corpus.opening import open_store
from roberta_dist.corpus.storage import ReadOptions, Store
from roberta_dist.corpus.verify import Finding, manifest_problems, verify_shard
from roberta_dist.errors import ConfigError, DataFault, RobertaDistError

SPLITS = ("train", "held_out")


def open_splits(corpus: Store) -> list[Manifest]:
    """Both manifests; a corpus without held-out text has one."""
    manifests = [open_manifest(corpus.child("train"))]
    try:
        manifests.append(open_manifest(corpus.child("held_out")))
    except ConfigError:
        print(f"{corpus.where('held_out')}: not there", file=sys.stderr)
    return manifests


def verify(
    manifests: list[Manifest], workers: int, with_sha256: bool, progress: bool
) -> Iterator[Finding | str]:
    """All findings, shard by shard in the order of the manifests."""
    for manifest in manifests:
        yield from manifest_problems(manifest)
    jobs = [(manifest, number) for manifest in manifests for number in range(len(manifest.shards))]
    with ThreadPoolExecutor(workers) as pool:
        results = pool.map(lambda job: verify_shard(job[0], job[1], with_sha256), jobs)
        for findings in tqdm(
            results, "verifying", len(jobs), unit="shard", disable=None if progress else True
        ):
            yield from findings


def main(arguments: list[str] | None = None) -> int:
    """Print what is wrong and the summary; see the top of this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus")
    parser.add_argument("--workers", type=int, default=8, help="shards read at a time")
    parser.add_argument("--sha256", action="store_true", help="also the hash of each file")
    parser.add_argument("--retry-s", type=float, default=120.0, help="as data.retry_s")
    parser.add_argument("--cache-dir", help="as data.cache_dir")
    parser.add_argument("--cache-gib", type=float, default=50.0, help="as data.cache_gib")
    given = parser.parse_args(arguments)
    options = ReadOptions(given.retry_s, given.cache_dir, given.cache_gib)
    try:
        manifests = open_splits(open_store(given.corpus, options))
    except RobertaDistError as error:
        print(error, file=sys.stderr)
        print(json.dumps({"packs": 0, "shards": 0, "bad": 1}))
        return error.exit_code
    bad = 0
    for finding in verify(manifests, max(1, given.workers), given.sha256, progress=True):
        tqdm.write(f"BAD {finding}")
        bad += 1
    packs = sum(len(manifest.packs) for manifest in manifests)
    shards = sum(len(manifest.shards) for manifest in manifests)
    print(json.dumps({"packs": packs, "shards": shards, "bad": bad}))
    return DataFault.exit_code if bad else 0


if __name__ == "__main__":
    sys.exit(main())
