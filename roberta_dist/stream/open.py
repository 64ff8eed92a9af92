"""Opening the corpora of a run: everything that decides its rows, the same on every rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from roberta_dist.config.data import DataConfig, InputFormat, MaskingConfig, MaskMode
from roberta_dist.corpus.manifest import Manifest, open_manifest
from roberta_dist.errors import ConfigError
from roberta_dist.runtime.rng import derive_key
from roberta_dist.runtime.world import World
from roberta_dist.stream.corpora import open_corpus, open_rule
from roberta_dist.stream.counts import BlockCounts
from roberta_dist.stream.masking import MaskRule
from roberta_dist.stream.order import PLAN_VERSION, Order, Shuffle, derive_shuffle
from roberta_dist.stream.plan import Plan, Weights, make_plan
from roberta_dist.stream.rows import RowOrder
from roberta_dist.units import MIB

SCALED_FORMATS = (
    InputFormat.doc_sentences,
    InputFormat.segment_pair,
    InputFormat.sentence_pair,
)
"""Formats whose rows are shorter than the length."""


@dataclass(frozen=True)
class Corpus:
    """The training split of one corpus.

    Attributes:
        name: as in `data.corpora`.
        manifest: its index.
        shuffle: lanes and window.
    """

    name: str
    manifest: Manifest
    shuffle: Shuffle


@dataclass(frozen=True)
class Stream:
    """Everything that decides the rows of a run; the same on every rank.

    Attributes:
        corpora: in the order of `data.locations`; they share a tokenizer.
        order: which block each row is.
        rule: how rows are masked.
        config: the `data` group.
        seed: `train.seed`.
        static_duplicates: masks and pairs that a block has in turn; 0 draws new ones each time.
    """

    corpora: tuple[Corpus, ...]
    order: RowOrder
    rule: MaskRule
    config: DataConfig
    seed: int
    static_duplicates: int = 0

    @property
    def plan(self) -> Plan:
        """Rows, length and mixture of each step."""
        return self.order.plan

    @property
    def manifest(self) -> Manifest:
        """The first corpus, for what all share: vocabulary and special tokens."""
        return self.corpora[0].manifest

    def fingerprint(self, next_row: int) -> dict[str, Any]:
        """What must be equal for the rows before `next_row` to be the same rows.

        Segments and corpora that come later may be added to a run.
        """
        segments = [s for s in self.plan.segments if s.first_row < max(1, next_row)]
        used = np.sum([segment.weights for segment in segments], axis=0)
        names = [corpus.name for corpus in self.corpora]
        return {
            "plan_version": PLAN_VERSION,
            "tokenizer_sha256": self.manifest.tokenizer_sha256,
            "seed": self.seed,
            "format": self.config.format.value,
            "corpora": {
                corpus.name: {
                    "manifest_sha256": corpus.manifest.sha256,
                    "lanes": corpus.shuffle.lanes,
                    "window": corpus.shuffle.window,
                }
                for corpus, weight in zip(self.corpora, used, strict=True)
                if weight > 0
            },
            "segments": [
                {
                    "first_row": segment.first_row,
                    "rows": segment.rows,
                    "sequence_length": segment.sequence_length,
                    "weights": {
                        name: weight
                        for name, weight in zip(names, segment.weights, strict=True)
                        if weight > 0
                    },
                }
                for segment in segments
            ],
        }


def open_stream(
    data: DataConfig,
    masking: MaskingConfig,
    seed: int,
    global_batch_size: int,
    progress: bool,
    recorded: Mapping[str, Any] | None = None,
) -> Stream:
    """Open the training splits of `data`.

    Args:
        data: corpora, format, lengths, phases.
        masking: how rows are masked.
        seed: `train.seed`.
        global_batch_size: full rows of a step.
        progress: show a bar where blocks are not counted yet.
        recorded: the `data` part of a checkpoint: lanes and windows of a run are derived once.

    Raises:
        ConfigError: not a prepared corpus, too little of it, or corpora of different tokenizers.
        DataFault: an index is damaged.
    """
    manifests = {
        name: open_manifest(open_corpus(path, data).child("train"))
        for name, path in data.locations.items()
    }
    _check_one_tokenizer(manifests)
    counts = BlockCounts(tuple(manifests.values()), data.format, progress)
    plan = make_plan(
        data,
        global_batch_size,
        _first_weights(data, manifests),
        counts.fill if data.scale_batch and data.format in SCALED_FORMATS else lambda *_: 1.0,
    )
    known = (recorded or {}).get("corpora", {})
    corpora = tuple(
        Corpus(
            name,
            manifest,
            Shuffle(known[name]["lanes"], known[name]["window"])
            if name in known
            else _derive_shuffle(manifest, data, plan, number),
        )
        for number, (name, manifest) in enumerate(manifests.items())
    )
    wanted = {
        (number, segment.sequence_length)
        for segment in plan.segments
        for number, weight in enumerate(segment.weights)
        if weight > 0
    }
    orders = {
        (number, length): Order(
            counts.of(number, length),
            corpora[number].shuffle,
            derive_key(seed, corpora[number].name, length),
        )
        for number, length in sorted(wanted)
    }
    rule = open_rule(masking, seed, "train", corpora[0].manifest, data)
    duplicates = masking.static_duplicates if masking.mode is MaskMode.static else 0
    return Stream(corpora, RowOrder(orders, plan), rule, data, seed, duplicates)


def _check_one_tokenizer(manifests: Mapping[str, Manifest]) -> None:
    hashes = {name: manifest.tokenizer_sha256 for name, manifest in manifests.items()}
    if len(set(hashes.values())) > 1:
        short = ", ".join(f"{name} {sha256[:12]}" for name, sha256 in hashes.items())
        raise ConfigError(
            f"data.corpora were tokenised by different tokenizers: {short}",
            "prepare all with one: tokenizer.path=CORPUS/tokenizer",
        )


def _first_weights(data: DataConfig, manifests: Mapping[str, Manifest]) -> Weights:
    if data.weights is not None:
        return tuple(data.weights[name] for name in manifests)
    return tuple(float(manifest.tokens) for manifest in manifests.values())


def _derive_shuffle(manifest: Manifest, data: DataConfig, plan: Plan, number: int) -> Shuffle:
    """Lanes and window of a corpus: `data.shuffle_mib` is dealt out by the corpora's first weights."""
    shares = [
        (segment.weights[number] / sum(segment.weights), segment.rows)
        for segment in plan.segments
        if segment.weights[number] > 0
    ]
    if not shares:
        return Shuffle(1, 1)
    share, _ = shares[0]
    rows = max(1, round(max(rows * share for share, rows in shares)))
    pack_bytes = max(1.0, float(np.mean(manifest.packs["length"])))
    in_flight = max(1, int(data.shuffle_mib * share * MIB / pack_bytes))
    return derive_shuffle(len(manifest.packs), rows, in_flight)


def check_lanes(stream: Stream, world: World) -> None:
    """Refuse a first launch with more ranks than lanes: ranks would read the same packs.

    Raises:
        ConfigError: lanes, ranks and what to change.
    """
    weights = stream.plan.segments[0].weights
    used = [c for c, weight in zip(stream.corpora, weights, strict=True) if weight > 0]
    lanes = sum(corpus.shuffle.lanes for corpus in used)
    if lanes < world.world_size:
        packs = sum(len(corpus.manifest.packs) for corpus in used)
        raise ConfigError(
            f"the corpus gives {lanes} lanes for {world.world_size} ranks ({packs} packs)",
            "prepare it with a smaller corpus.pack_mib, or start fewer ranks",
        )
