"""How fast rows arrive, against what people use instead: `python tools/bench_stream.py [--corpus CORPUS]`.

One process, one thread. All variants deliver the same rows (FULL-SENTENCES, 512 tokens), masked by our
vectorised masking into the same flat batch, taking turns inside one run; medians over the turns:

    ours        range reads with crc32, lanes and windows, packing, shuffle, masking
    webdataset  one `.npy` sample a row, `.decode()`, `.shuffle(1000)`
    hf          Hugging Face streaming, numpy format, a sample at a time, shuffle buffer of 1000
    memmap      in-memory array of the padded rows, fancy indexing, no shuffle to compute

The last line is JSON; rates are in 10⁶ tokens a second, ratios are ours ÷ theirs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roberta_dist.config.data import DataConfig, MaskingConfig
from roberta_dist.config.load import compose
from roberta_dist.config.roots import PrepareConfig
from roberta_dist.corpus.manifest import read_manifest
from roberta_dist.corpus.prepare import prepare
from roberta_dist.runtime.world import World
from roberta_dist.stream.batch import Batch, make_batch
from roberta_dist.stream.loader import RankReader
from roberta_dist.stream.masking import apply_mask
from roberta_dist.stream.open import Stream, open_stream
from roberta_dist.units import MIB

LENGTH = 512
MICRO_BATCHES = 8
"""Micro-batches in a global batch."""
Rows = list[NDArray[np.uint16]]


def ours(stream: Stream, reader: RankReader) -> Iterator[Batch]:
    """The training path, without the thread that reads ahead."""
    row = 0
    while True:
        yield from reader.micro_batches(row)
        row += stream.plan.batch_rows(row)


def in_batches(samples: Iterator[Any], stream: Stream, batch: int) -> Iterator[Batch]:
    """Samples of one row each, masked `batch` at a time."""
    number = 0
    while True:
        rows = [np.asarray(next(samples), dtype=np.uint16) for _ in range(batch)]
        yield make_batch(rows, np.arange(number, number + batch), stream.rule)
        number += batch


def webdataset_samples(folder: Path) -> Iterator[Any]:
    """Epoch after epoch of the rows as webdataset samples."""
    import webdataset as wds

    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    while True:
        data = wds.WebDataset(urls, shardshuffle=100, seed=1).shuffle(1000).decode()
        yield from (sample["npy"] for sample in data)


def hf_samples(folder: Path) -> Iterator[Any]:
    """Epoch after epoch of the rows as a Hugging Face stream."""
    from datasets import load_from_disk

    data = load_from_disk(str(folder)).to_iterable_dataset(num_shards=8)
    data = data.shuffle(buffer_size=1000, seed=1).with_format("numpy")
    while True:
        yield from (sample["tokens"] for sample in data)


def memmap_batches(path: Path, stream: Stream, batch: int) -> Iterator[Batch]:
    """Padded rows by fancy indexing; padding is special, so it is never predicted."""
    table = np.load(path, mmap_mode="r")
    rng = np.random.default_rng(1)
    number = 0
    while True:
        block = table[rng.integers(0, len(table), batch)]
        yield make_batch(list(block), np.arange(number, number + batch), stream.rule)
        number += batch


def write_rows(rows: Rows, folder: Path) -> None:
    """The same rows as webdataset shards, a Hugging Face data set and a padded array."""
    import webdataset as wds
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    shards = np.array_split(np.arange(len(rows)), 8)
    (folder / "wds").mkdir()
    for number, members in enumerate(shards):
        with wds.TarWriter(str(folder / "wds" / f"{number:06d}.tar")) as writer:
            for member in members:
                writer.write({"__key__": f"{member:08d}", "npy": rows[member]})
    Dataset.from_dict({"tokens": rows}).save_to_disk(str(folder / "hf"))
    table = np.full((len(rows), LENGTH), 1, dtype=np.uint16)
    for row, tokens in zip(table, rows, strict=True):
        row[: len(tokens)] = tokens
    np.save(folder / "rows.npy", table)


def turn(batches: Iterator[Batch], tokens: int, pad: int) -> float:
    """10⁶ real tokens a second over the next `tokens` or so."""
    seen = 0
    began = time.perf_counter()
    while seen < tokens:
        seen += int(np.count_nonzero(next(batches).tokens_T != pad))
    return seen / (time.perf_counter() - began) / 1e6


def mask_ratio(stream: Stream, turns: int) -> float:
    """Masking of (64, 512) rows ÷ numpy's `Generator.random` of as many numbers."""
    rng = np.random.default_rng(0)
    rows = list(rng.integers(5, stream.manifest.vocab_size - 1, (64, LENGTH)).astype(np.uint16))
    rule = stream.rule
    ids = np.arange(64)
    mask = masker(rows, ids, rule)

    def seconds(action: Callable[[], Any]) -> float:
        began = time.perf_counter()
        action()
        return time.perf_counter() - began

    # Call by call in turn, so that both see the same machine.
    pairs = [(seconds(mask), seconds(lambda: rng.random(64 * LENGTH))) for _ in range(100 * turns)]
    return statistics.median(pair[0] for pair in pairs) / statistics.median(
        pair[1] for pair in pairs
    )


def masker(rows: Rows, ids: NDArray[np.int64], rule: Any) -> Callable[[], Any]:
    """Masking alone, of rows that are already one flat array."""
    tokens_T = np.concatenate(rows)
    cu_seqlens = np.arange(len(rows) + 1) * LENGTH
    return lambda: apply_mask(rule, tokens_T, cu_seqlens, ids)


def some_corpus(folder: Path) -> Path:
    """The documentation of the running Python, 32 MiB of it."""
    settings = ["corpus=docstrings", f"output={folder}", "corpus.max_mib=32", "progress=false"]
    settings += ["tokenizer.vocab_size=30000", "tokenizer.train_mib=8"]
    prepare(compose("prepare", PrepareConfig, settings))
    return folder


def open_bench(corpus: Path, batch: int) -> Stream:
    """The corpus as a run sees one much larger than its memory: a quarter of the packs is in flight,
    so that each is read, checked and cut anew in every epoch."""
    mib = float(read_manifest(corpus / "train").packs["length"].sum()) / MIB
    data = DataConfig(path=str(corpus), sequence_length=LENGTH, shuffle_mib=mib / 4)
    return open_stream(data, MaskingConfig(), 1, MICRO_BATCHES * batch, progress=False)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=Path, help="prepared corpus; none prepares documentation")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--batch", type=int, default=64, help="rows of a batch")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = options.corpus or some_corpus(folder / "corpus")
        stream = open_bench(corpus, options.batch)
        rows = plain_rows_of(stream)
        write_rows(rows, folder)
        pad = stream.manifest.special_tokens.pad
        reader = RankReader(stream, World(), options.batch)
        variants = {
            "ours": ours(stream, reader),
            "webdataset": in_batches(webdataset_samples(folder / "wds"), stream, options.batch),
            "hf": in_batches(hf_samples(folder / "hf"), stream, options.batch),
            "memmap": memmap_batches(folder / "rows.npy", stream, options.batch),
        }
        # Slow variants take shorter turns, so that all are measured over like times.
        size = {"ours": 4_000_000, "webdataset": 300_000, "hf": 300_000, "memmap": 4_000_000}
        rates: dict[str, list[float]] = {name: [] for name in variants}
        for number in range(options.turns + 1):
            for name, batches in variants.items():
                rate = turn(batches, size[name], pad)
                if number:  # the first turn fills caches
                    rates[name].append(rate)
        medians = {name: statistics.median(values) for name, values in rates.items()}
        for name, rate in medians.items():
            print(
                f"{name:12}{rate:9.2f} Mtokens/s   {min(rates[name]):.2f} - {max(rates[name]):.2f}"
            )
        read = reader.maker.reads / len(stream.manifest.packs)
        epochs = (options.turns + 1) * size["ours"] / stream.manifest.tokens
        print(f"packs were read {read / epochs:.2f} times an epoch")
        ratios = {
            f"ratio_{name}": statistics.median(
                mine / theirs for mine, theirs in zip(rates["ours"], rates[name], strict=True)
            )
            for name in ("webdataset", "hf", "memmap")
        }
        result = {"mtokens_per_s": medians["ours"], **ratios, "mask_ratio": mask_ratio(stream, 9)}
        print(json.dumps({key: round(value, 3) for key, value in result.items()}))
    return 0


def plain_rows_of(stream: Stream) -> Rows:
    """One epoch or so of the rows, unmasked."""
    reader = RankReader(stream, World(), 64)
    count = min(stream.corpora[0].manifest.packs["blocks_512"].sum(), 20_000)
    places = stream.order.locate(np.arange(count))
    rows, _ = reader.maker.make(places, np.arange(count), LENGTH)
    reader.close()
    return rows


if __name__ == "__main__":
    sys.exit(main())
