"""Split and identity depend on the text alone."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roberta_dist.corpus.split import content_digest, is_held_out, normalise, place_digest

pytestmark = pytest.mark.unit


@given(words=st.lists(st.text(min_size=1), min_size=1), gap=st.sampled_from([" ", "\n\n", "\t "]))
def test_spacing_does_not_count(words: list[str], gap: str) -> None:
    assert content_digest(gap + gap.join(words), "s") == content_digest(" ".join(words), "s")


@given(st.one_of(st.text(), st.text(alphabet=[chr(code) for code in range(128)])))
def test_the_digest_is_that_of_the_normalised_text(text: str) -> None:
    content = b"s\0" + normalise(text).encode("utf-8")
    assert content_digest(text, "s") == hashlib.sha256(content).digest()[:16]


def test_composed_and_decomposed_are_one_text() -> None:
    assert normalise("e\u0301te\u0301") == "été"
    assert content_digest("e\u0301", "s") == content_digest("é", "s")


def test_case_and_salt_count() -> None:
    digests = {content_digest(text, salt) for text in ("a", "A", "a b") for salt in ("s", "t")}
    assert len(digests) == 6


def test_salt_and_text_do_not_run_together() -> None:
    assert content_digest("bc", "a") != content_digest("c", "ab")


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.25])
def test_share_held_out(fraction: float) -> None:
    count = 20_000
    held = sum(is_held_out(content_digest(f"text {i}", "s"), fraction) for i in range(count))
    sigma = (count * fraction * (1 - fraction)) ** 0.5
    assert abs(held - count * fraction) <= 4 * sigma


def test_a_larger_fraction_keeps_what_a_smaller_one_held_out() -> None:
    digests = [content_digest(f"text {i}", "s") for i in range(2000)]
    assert all(is_held_out(d, 0.2) for d in digests if is_held_out(d, 0.1))


def test_copies_have_places_of_their_own_only_where_they_are_kept() -> None:
    digest = content_digest("same", "s")
    assert place_digest(digest, None) == digest
    assert len({place_digest(digest, n) for n in range(100)}) == 100
