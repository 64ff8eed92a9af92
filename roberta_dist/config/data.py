"""`data` and `masking`: what a worker reads and which tokens it hides."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import Enum

from roberta_dist.config.fields import extendable, free, identity, require


class InputFormat(str, Enum):
    """How packs become sequences (RoBERTa §4.2)."""

    full_sentences = "full_sentences"
    doc_sentences = "doc_sentences"
    segment_pair = "segment_pair"
    sentence_pair = "sentence_pair"
    blocks = "blocks"

    @property
    def is_pair(self) -> bool:
        """Rows are two segments with a next-sentence label."""
        return self in (InputFormat.segment_pair, InputFormat.sentence_pair)


@dataclass(frozen=True)
class Phase:
    """What changes at a step; whatever is not given stays as it was."""

    from_step: int = identity(0)
    """First step of the phase."""
    sequence_length: int = identity(0)
    """Tokens in a row from then on; 0 keeps."""
    global_batch_size: int = identity(0)
    """Rows in one optimizer step from then on; 0 keeps."""
    ramp_steps: int = identity(0)
    """Reach `global_batch_size` linearly over so many steps; 0 at once."""
    weights: dict[str, float] | None = identity(None)
    """Shares of the corpora from then on; null keeps."""

    def __post_init__(self) -> None:
        for key in ("from_step", "sequence_length", "global_batch_size", "ramp_steps"):
            value = vars(self)[key]
            require(value >= 0, f"data.phases: {key}", value, "must be ≥ 0")
        require(
            self.ramp_steps == 0 or self.global_batch_size > 0,
            "data.phases: ramp_steps",
            self.ramp_steps,
            "needs a global_batch_size to reach",
        )


@dataclass(frozen=True)
class DataConfig:
    """Which corpora, in which shape, in which order."""

    path: str = free("corpora/docstrings")
    """Corpus written by `roberta-dist prepare`: a folder, `s3://…`, `gs://…`, `https://…`, or a source
    with `{}` for the file's name (`pipe:ssh host cat /corpora/mine/{}`). Identity is its content."""
    corpora: dict[str, str] | None = free(None)
    """Several corpora, name → path as above; then `path` is not used."""
    weights: dict[str, float] | None = extendable(None)
    """Share of the rows of each of `corpora`; null mixes them by their size."""
    phases: list[Phase] = extendable([])
    """Changes of length, batch size or weights at given steps, in order."""
    format: InputFormat = identity(InputFormat.full_sentences)
    """`full_sentences`: whole sentences up to the length, across documents; `doc_sentences`: never
    across; `segment_pair`, `sentence_pair`: two segments or sentences with a next-sentence label;
    `blocks`: contiguous, always full."""
    scale_batch: bool = identity(True)
    """Formats with shorter rows take more of them in a step, so that its tokens stay comparable: the
    factor is rows of the format ÷ rows of `full_sentences` over the corpus, a constant."""
    sequence_length: int = identity(512)
    """Tokens in a row, specials included."""
    shuffle_mib: float = identity(4096.0)
    """MiB of packs in flight over the whole cluster: more shuffles better, less saves memory."""
    cache_mib: float = free(0.0)
    """MiB of decoded packs a rank may hold; 0 derives it from `shuffle_mib` and the world."""
    prefetch_steps: int = free(2)
    """Steps the reading thread runs ahead."""
    retry_s: float = free(120.0)
    """Seconds a failing read of a remote corpus is tried again before it is a fault."""
    cache_dir: str | None = free(None)
    """Folder for copies of remote corpora's files; null is the user's cache folder."""
    cache_gib: float = free(50.0)
    """GiB that folder may grow to; the files used longest ago go first."""
    quarantine_packs: int = free(0)
    """Damaged packs to replace by others before the run stops; 0 stops at the first."""

    def __post_init__(self) -> None:
        require(
            8 <= self.sequence_length <= 65_000,
            "data.sequence_length",
            self.sequence_length,
            "must be in [8, 65000]",
        )
        for key in ("shuffle_mib", "cache_gib"):
            value = vars(self)[key]
            require(value > 0, f"data.{key}", value, "must be positive")
        for key in ("cache_mib", "retry_s", "quarantine_packs"):
            value = vars(self)[key]
            require(value >= 0, f"data.{key}", value, "must be ≥ 0")
        require(self.prefetch_steps >= 1, "data.prefetch_steps", self.prefetch_steps, "must be ≥ 1")
        self._check_corpora()
        self._check_phases()

    def _check_corpora(self) -> None:
        require(self.corpora != {}, "data.corpora", self.corpora, "names no corpus")
        for name in self.corpora or {}:
            require(
                re.fullmatch(r"[A-Za-z0-9_.-]+", name) is not None,
                "data.corpora",
                name,
                "a name may have letters, digits, '_', '.' and '-': it names metrics",
            )
        for shares in (self.weights, *(phase.weights for phase in self.phases)):
            if shares is None:
                continue
            names = sorted(self.corpora or {})
            require(
                bool(names) and sorted(shares) == names and min(shares.values()) >= 0,
                "data.weights",
                shares,
                f"must give each of data.corpora={names} a share ≥ 0",
            )
            total = sum(shares.values())
            require(0 < total < math.inf, "data.weights", shares, "need a positive, finite sum")

    def _check_phases(self) -> None:
        free_from = 0
        for phase in self.phases:
            require(
                phase.from_step >= free_from,
                "data.phases: from_step",
                phase.from_step,
                f"must be ≥ {free_from}, after the phase before and its ramp",
            )
            free_from = phase.from_step + max(1, phase.ramp_steps)
            require(
                phase.sequence_length == 0 or 8 <= phase.sequence_length <= 65_000,
                "data.phases: sequence_length",
                phase.sequence_length,
                "must be in [8, 65000]",
            )

    @property
    def longest(self) -> int:
        """The longest row of any phase."""
        return max([self.sequence_length, *(phase.sequence_length for phase in self.phases)])

    @property
    def locations(self) -> dict[str, str]:
        """Name → path of every corpus, by name; a single one is called `corpus`.

        By name, so that a command that lists them in another order reads the same rows.
        """
        return dict(sorted(self.corpora.items())) if self.corpora else {"corpus": self.path}


class MaskMode(str, Enum):
    """Whether a sequence is masked anew each time it is read (RoBERTa §4.1)."""

    dynamic = "dynamic"
    static = "static"


class MaskUnit(str, Enum):
    """What is predicted as a whole."""

    token = "token"
    whole_word = "whole_word"
    span = "span"


class MaskSelection(str, Enum):
    """How many units of a row are predicted."""

    bernoulli = "bernoulli"
    exact = "exact"


@dataclass(frozen=True)
class MaskingConfig:
    """Which tokens are predicted, and from what: a pure function of (seed, row, position)."""

    mode: MaskMode = identity(MaskMode.dynamic)
    """`dynamic`: new masks each time; `static`: `static_duplicates` fixed masks of each sequence."""
    static_duplicates: int = identity(10)
    """Under `static`, the masks a sequence has; epoch e reads the one of e mod this (BERT: 10)."""
    unit: MaskUnit = identity(MaskUnit.token)
    """`token`; `whole_word`: words between whitespace; `span`: runs of words (SpanBERT)."""
    selection: MaskSelection = identity(MaskSelection.bernoulli)
    """`bernoulli`: each unit by its own chance; `exact`: a budget of tokens a row (fairseq)."""
    probability: float = identity(0.15)
    """Share of the tokens that may be predicted which is predicted."""
    mask_fraction: float = identity(0.8)
    """Of the predicted positions, the share replaced by `<mask>`."""
    random_fraction: float = identity(0.1)
    """Of the predicted positions, the share replaced by a random token; the rest stay."""
    mask_specials: bool = identity(False)
    """Also predict `<s>`, `</s>` and `<unk>`, as fairseq does; never `<pad>` or `<mask>`."""
    max_word_tokens: int = identity(8)
    """A run without whitespace longer than this many tokens counts as several words (Chinese, URLs)."""
    span_p: float = identity(0.2)
    """Success chance of the geometric distribution of a span's words."""
    max_span: int = identity(10)
    """Most words of a span; the distribution is cut there and renormalised (mean 3.8 words)."""

    def __post_init__(self) -> None:
        require(
            0.0 < self.probability < 1.0,
            "masking.probability",
            self.probability,
            "must be in (0, 1)",
        )
        require(
            min(self.mask_fraction, self.random_fraction) >= 0.0
            and self.mask_fraction + self.random_fraction <= 1.0,
            "masking.mask_fraction + masking.random_fraction",
            self.mask_fraction + self.random_fraction,
            "both must be ≥ 0 and their sum ≤ 1",
        )
        for key, value in (
            ("static_duplicates", self.static_duplicates),
            ("max_word_tokens", self.max_word_tokens),
            ("max_span", self.max_span),
        ):
            require(value >= 1, f"masking.{key}", value, "must be ≥ 1")
        require(0.0 < self.span_p <= 1.0, "masking.span_p", self.span_p, "must be in (0, 1]")
        if self.unit is MaskUnit.span:
            self._require_span()

    def _require_span(self) -> None:
        require(
            self.selection is MaskSelection.exact,
            "masking.selection",
            self.selection.value,
            "spans are drawn until a budget of tokens is met, so unit=span needs selection=exact",
            "say masking.selection=exact, or take both from masking=span",
        )
