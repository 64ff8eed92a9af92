"""Whole words, spans, exact budgets: against a reference in plain Python, and their statistics."""

from __future__ import annotations

import itertools
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masking_reference import masked_row, token_bytes, words_of

from roberta_dist.config.data import MaskingConfig, MaskSelection, MaskUnit
from roberta_dist.corpus.bpe import train_bpe
from roberta_dist.corpus.words import word_tables
from roberta_dist.stream.masking import apply_mask, mask_rule
from roberta_dist.stream.masking_torch import apply_mask_torch

pytestmark = pytest.mark.unit

TEXTS = [
    "The quick brown fox jumps over the lazy dog.\n\tIt was   not amused, said the dog.\n",
    "https://example.org/a/rather/long/path?query=something&other=antidisestablishmentarianism",
    "北京是中华人民共和国的首都，也是全国的政治、文化中心。今天天气很好　我们去公园散步。",
    "👩‍👩‍👧‍👦 family 🎉🎉🎉 party 🇫🇷 flags 👍🏽 and 🦄",
    "اللغة العربية هي إحدى أكثر اللغات انتشارا في العالم، يتحدثها أكثر من أربعمائة مليون نسمة.",
]
TRAINED = train_bpe(iter(TEXTS * 20), 420)
"""420 entries: some Chinese characters are one token, most are two or three."""
BPE = replace(
    TRAINED, vocab=TRAINED.vocab | {"aĠ": 420, "bĠcĊ": 421, "ĠdĠ": 422, "ĠĊ": 423, "eãĢĢ": 424}
)
"""And tokens that a tokenizer without GPT-2's pattern may have: whitespace after text."""
SPELT = token_bytes(BPE)
ROLES = asdict(BPE.specials)
EOS = BPE.specials.eos

CASES = [
    (unit, selection, specials)
    for unit, selection, specials in itertools.product(MaskUnit, MaskSelection, (False, True))
    if not (unit is MaskUnit.span and selection is MaskSelection.bernoulli)
]


def config_of(unit, selection, specials=False, **others) -> MaskingConfig:
    return MaskingConfig(unit=unit, selection=selection, mask_specials=specials, **others)


def rule_of(config: MaskingConfig, seed: int = 1):
    return mask_rule(config, seed, "train", BPE.size, BPE.specials, word_tables(BPE))


def text_rows(lengths=(3, 17, 40, 64, 128)) -> list[list[int]]:
    """Rows of every text, cut at lengths that also fall inside characters; some hold an inner `</s>`."""
    rows = []
    for shift, length in enumerate(lengths):
        for number, text in enumerate(TEXTS):
            tokens = BPE.tokenizer.encode(text * 3, add_special_tokens=False).ids[shift:]
            if number % 2:
                tokens = [*tokens[:11], EOS, *tokens[12:]]
            rows.append([BPE.specials.bos, *tokens[: length - 2], EOS])
    return rows


def flat(rows: list[list[int]], ids: list[int]):
    lengths = [len(row) for row in rows]
    tokens_T = np.array([token for row in rows for token in row], dtype=np.uint16)
    return tokens_T, np.concatenate(([0], np.cumsum(lengths))), np.array(ids, dtype=np.int64)


def by_row(masked, cu_seqlens) -> list[dict[int, int]]:
    """Predicted position → what stands there, for each row."""
    result: list[dict[int, int]] = [{} for _ in cu_seqlens[:-1]]
    rows = np.searchsorted(cu_seqlens, masked.index_M, side="right") - 1
    for row, index in zip(rows, masked.index_M, strict=True):
        result[row][int(index - cu_seqlens[row])] = int(masked.tokens_T[index])
    return result


def check_against_reference(config: MaskingConfig, rows: list[list[int]], ids: list[int]) -> None:
    rule = rule_of(config)
    tokens_T, cu_seqlens, ids_R = flat(rows, ids)
    masked = apply_mask(rule, tokens_T, cu_seqlens, ids_R)
    assert np.array_equal(masked.labels_M, tokens_T[masked.index_M])
    untouched = np.delete(np.arange(len(tokens_T)), masked.index_M)
    assert np.array_equal(masked.tokens_T[untouched], tokens_T[untouched])
    expected = [
        masked_row(config, rule.key, number, row, SPELT, ROLES)
        for row, number in zip(rows, ids, strict=True)
    ]
    assert by_row(masked, cu_seqlens) == expected
    theirs = apply_mask_torch(
        rule, *(torch.from_numpy(x.astype(np.int64)) for x in (tokens_T, cu_seqlens, ids_R))
    )
    for left, right in zip((masked.tokens_T, masked.index_M, masked.labels_M), theirs, strict=True):
        assert np.array_equal(left.astype(np.int64), right.numpy())


@pytest.mark.parametrize(("unit", "selection", "specials"), CASES)
@pytest.mark.parametrize("probability", [0.15, 0.55])
def test_text_is_masked_as_by_the_reference(unit, selection, specials, probability):
    rows = text_rows()
    config = config_of(unit, selection, specials, probability=probability, max_word_tokens=4)
    ids = [number * 10**12 if number % 6 else -1 for number in range(1, len(rows) + 1)]
    check_against_reference(config, rows, ids)


@settings(max_examples=60, deadline=None)
@given(
    case=st.sampled_from(CASES),
    rows=st.lists(
        st.lists(st.integers(0, BPE.size - 1), min_size=1, max_size=30), min_size=1, max_size=5
    ),
    first=st.integers(-1, 2**62),
    probability=st.sampled_from([0.01, 0.15, 0.5, 0.95]),
    longest=st.integers(1, 9),
    max_span=st.integers(1, 12),
)
def test_any_tokens_are_masked_as_by_the_reference(
    case, rows, first, probability, longest, max_span
):
    """Also bytes that are no text, specials anywhere, `<mask>` and `<pad>` in a row."""
    config = config_of(
        *case, probability=probability, max_word_tokens=longest, max_span=max_span
    )  # fmt: skip
    check_against_reference(config, rows, [first + number for number in range(len(rows))])


@pytest.mark.parametrize(("unit", "selection", "specials"), CASES)
def test_a_row_is_masked_alone_as_in_any_batch(unit, selection, specials):
    rule, rows = rule_of(config_of(unit, selection, specials)), text_rows()
    ids = [7 * number for number in range(len(rows))]
    tokens_T, cu_seqlens, ids_R = flat(rows, ids)
    together = by_row(apply_mask(rule, tokens_T, cu_seqlens, ids_R), cu_seqlens)
    assert sum(map(len, together)) > 50
    for row, number, expected in zip(rows, ids, together, strict=True):
        tokens_T, cu_seqlens, ids_R = flat([row], [number])
        assert by_row(apply_mask(rule, tokens_T, cu_seqlens, ids_R), cu_seqlens) == [expected]
    order = np.random.default_rng(0).permutation(len(rows))
    tokens_T, cu_seqlens, ids_R = flat([rows[i] for i in order], [ids[i] for i in order])
    shuffled = by_row(apply_mask(rule, tokens_T, cu_seqlens, ids_R), cu_seqlens)
    assert shuffled == [together[i] for i in order]


def test_words_are_what_a_reader_calls_words():
    def words(text: str, longest: int = 8) -> list[str]:
        tokens = BPE.tokenizer.encode(text).ids
        found = words_of(tokens, SPELT, longest)[1:-1]
        return [b"".join(SPELT[tokens[p]] for p in word).decode() for word in found]

    assert words("The quick brown\tfox  jumps") == ["The", " quick", " brown", "\tfox", "  jumps"]  # fmt: skip
    assert words("🎉🎉 party 👍🏽") == ["🎉🎉", " party", " 👍🏽"]
    assert words("اللغة العربية", 30) == ["اللغة", " العربية"]
    chinese = words("北京是中华人民共和国的首都也是全国的政治文化中心", 3)
    loose = [BPE.vocab[token] for token in ("aĠ", "q", "ĠdĠ", "ĠĊ", "u", "bĠcĊ", "a")]
    assert words_of(loose, SPELT, 8) == [[0], [1], [2], [3, 4, 5], [6]]
    assert "".join(chinese) == "北京是中华人民共和国的首都也是全国的政治文化中心"
    assert len(chinese) > 8  # no whitespace, and no character cut: each piece is valid UTF-8


def scattered(rows: int, length: int, seed: int = 0) -> tuple[list[list[int]], list[int]]:
    """Rows of random words: 1 to 5 tokens each."""
    begins = [n for n, b in SPELT.items() if b.startswith(b" ") and len(b.strip()) > 0]
    inner = [n for n, b in SPELT.items() if b.isalnum()]
    rng = np.random.default_rng(seed)
    first = rng.choice(begins, size=(rows, length))
    tokens = np.where(rng.random((rows, length)) < 0.6, first, rng.choice(inner, (rows, length)))
    tokens[:, 0], tokens[:, -1] = BPE.specials.bos, EOS
    return tokens.tolist(), list(range(rows))


def close(count: float, trials: int, probability: float) -> None:
    sigma = (trials * probability * (1 - probability)) ** 0.5
    assert abs(count - trials * probability) < 3.5 * sigma, (count / trials, probability)


@pytest.mark.parametrize(("unit", "selection", "specials"), CASES)
def test_shares(unit, selection, specials):
    """Selected, mask, random, kept; spans decide as a whole, so their shares spread more."""
    rule = rule_of(config_of(unit, selection, specials))
    rows, ids = scattered(800, 256)
    tokens_T, cu_seqlens, ids_R = flat(rows, ids)
    masked = apply_mask(rule, tokens_T, cu_seqlens, ids_R)
    allowed, chosen = 800 * (256 if specials else 254), len(masked.index_M)
    # A word is selected as a whole: of one variance per word and 1.67 tokens a word, with a spread.
    groups = {"token": 1, "whole_word": 3, "span": 8}[unit.value]
    close(chosen / groups, allowed // groups, 0.15)
    now = masked.tokens_T[masked.index_M]
    changed = (now != rule.mask_id) & (now != masked.labels_M)
    spread = groups if unit is MaskUnit.span else 1
    close((now == rule.mask_id).sum() / spread, chosen // spread, 0.8)
    # A random token is the one it replaces once in as many times as there are ordinary tokens.
    close(changed.sum() / spread, chosen // spread, 0.1 * (1 - 1 / len(rule.ordinary_ids)))
    assert not np.isin(now[changed], list(ROLES.values())).any()
    special_chosen = np.isin(masked.labels_M, list(ROLES.values())).sum()
    if specials and unit is MaskUnit.span:
        assert special_chosen > 0  # fewer: a span reaches `<s>` only by beginning there
    elif specials:
        close(special_chosen, 1600, 0.15)
    else:
        assert special_chosen == 0


@pytest.mark.parametrize("unit", [MaskUnit.token, MaskUnit.whole_word, MaskUnit.span])
def test_an_exact_budget_is_met(unit):
    """Within one word of floor(p·n + u); for single tokens to the token."""
    rows, ids = scattered(400, 200)
    tokens_T, cu_seqlens, ids_R = flat(rows, ids)
    rule = rule_of(config_of(unit, MaskSelection.exact))
    index_M = apply_mask(rule, tokens_T, cu_seqlens, ids_R).index_M
    counts = np.histogram(index_M, cu_seqlens)[0]
    if unit is MaskUnit.token:
        assert set(counts) == {29, 30}  # 0.15 · 198 = 29.7
        close((counts == 30).sum(), 400, 0.7)
    else:
        longest = max(len(w) for row in rows for w in words_of(row, SPELT, 8))
        assert counts.min() > 29 - longest and counts.max() < 30 + longest
        assert abs(counts.mean() - 29.7) < 3.5 * counts.std() / 20


@pytest.mark.parametrize(("unit", "selection", "specials"), [c for c in CASES if c[0] != "token"])
def test_no_word_is_partly_predicted(unit, selection, specials):
    rows, ids = scattered(50, 200)
    rows, ids = rows + text_rows(), ids + list(range(1000, 1000 + len(text_rows())))
    tokens_T, cu_seqlens, ids_R = flat(rows, ids)
    rule = rule_of(config_of(unit, selection, specials))
    for row, taken in zip(
        rows, by_row(apply_mask(rule, tokens_T, cu_seqlens, ids_R), cu_seqlens), strict=True
    ):
        for word in words_of(row, SPELT, 8):
            assert len({position in taken for position in word}) == 1


def test_span_lengths_are_geometric_and_cut():
    """The first span of a row is never dropped, so it shows the distribution that is drawn from."""
    config = config_of(MaskUnit.span, MaskSelection.exact, probability=0.1)
    rule = rule_of(config)
    word = next(n for n, b in SPELT.items() if b[:1] == b" " and b.strip())
    tokens = [BPE.specials.bos, *[word] * 400, EOS]
    rows, ids = [tokens] * 3000, list(range(3000))
    tokens_T, cu_seqlens, ids_R = flat(rows, ids)
    lengths, seen = np.zeros(11), 0
    for taken in by_row(apply_mask(rule, tokens_T, cu_seqlens, ids_R), cu_seqlens):
        ordered = sorted(taken)
        runs = np.split(ordered, np.flatnonzero(np.diff(ordered) > 1) + 1)
        assert 38 <= len(ordered) <= 41
        for run in runs:
            lengths[min(len(run), 10)] += 1
            seen += 1
    assert seen > 3000 * 5
    drawn = np.searchsorted(rule.span_below, np.random.default_rng(0).integers(0, 2**32, 200_000), "right")  # fmt: skip
    chances = 0.2 * 0.8 ** np.arange(10) / (1 - 0.8**10)
    for words, chance in enumerate(chances, start=1):
        close((drawn == words).sum(), 200_000, chance)
    assert abs(drawn.mean() - 3.797) < 0.02
    # What is realised: fewer long runs, since long spans are dropped more often, more joined ones.
    assert 0.15 < lengths[1] / seen < 0.26 and 3.4 < lengths @ np.arange(11) / seen < 4.4


def test_all_tokens_of_a_span_get_the_same():
    config = config_of(MaskUnit.span, MaskSelection.exact, max_span=10, probability=0.02)
    rows, ids = scattered(1500, 200)
    tokens_T, cu_seqlens, ids_R = flat(rows, ids)
    masked = apply_mask(rule_of(config), tokens_T, cu_seqlens, ids_R)
    # 4 tokens a row: nearly always one span; it is whole where the predicted positions are a run.
    kinds = np.where(masked.tokens_T == BPE.specials.mask, 0, np.where(masked.tokens_T == tokens_T, 2, 1))  # fmt: skip
    rows_M = np.searchsorted(cu_seqlens, masked.index_M, side="right")
    alike = [
        len(set(kinds[masked.index_M[rows_M == row]]) - ({2} if 1 in kinds[masked.index_M[rows_M == row]] else set())) == 1
        for row in np.unique(rows_M)
        if np.ptp(masked.index_M[rows_M == row]) + 1 == (rows_M == row).sum()
    ]  # fmt: skip
    assert len(alike) > 500 and np.mean(alike) > 0.97


def test_units_of_words_need_the_tables():
    config = config_of(MaskUnit.whole_word, MaskSelection.exact)
    with pytest.raises(ValueError, match=r"masking\.unit=whole_word"):
        mask_rule(config, 1, "train", BPE.size, BPE.specials)
