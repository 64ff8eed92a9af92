"""Our tokens are those of `tokenizers` and of transformers' AutoTokenizer."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from roberta_dist.corpus.bpe import Bpe, save_bpe, train_bpe
from roberta_dist.corpus.docstrings import find_documentation, read_documentation
from roberta_dist.corpus.encode import Encoder, cut_pieces
from roberta_dist.corpus.text import replace_surrogates

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def documents() -> list[str]:
    """1,000 texts: prose, tables, code samples."""
    found: list[str] = []
    for file in find_documentation():
        found += [document.text[:4000] for document in read_documentation(file)]
        if len(found) >= 1000:
            break
    return found[:1000]


@pytest.fixture(scope="module")
def bpe(documents: list[str]) -> Bpe:
    return train_bpe(iter(documents[::4]), 3000)


def without_tiktoken(bpe: Bpe) -> Encoder:
    encoder = Encoder(Bpe(bpe.vocab, bpe.merges, gpt2_pattern=False, tokenizer=bpe.tokenizer))
    assert encoder.backend == "tokenizers"
    return encoder


def with_tiktoken(bpe: Bpe) -> Encoder:
    encoder = Encoder(bpe)
    assert encoder.backend == "tiktoken"
    return encoder


def whole(bpe: Bpe, text: str) -> NDArray[np.uint16]:
    """Tokens of the uncut text."""
    bpe.tokenizer.encode_special_tokens = True
    try:
        return np.array(bpe.tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.uint16)
    finally:
        bpe.tokenizer.encode_special_tokens = False


def assert_same(left: NDArray[np.uint16], right: NDArray[np.uint16]) -> None:
    assert len(left) == len(right) and np.array_equal(left, right)


def test_documents(bpe: Bpe, documents: list[str]) -> None:
    fast, slow = with_tiktoken(bpe), without_tiktoken(bpe)
    assert len(documents) == 1000
    for text in documents:
        encoded = fast.encode(text)
        assert_same(encoded.tokens, slow.encode(text).tokens)
        assert encoded.forced_cuts == 0


def test_cutting_does_not_change_tokens(bpe: Bpe, documents: list[str]) -> None:
    for text in ("\n".join(documents[:120]), "中文。\u3000" * 40_000, "a\x1c \x85b\xa0" * 30_000):
        encoded = with_tiktoken(bpe).encode(text)
        assert len(list(cut_pieces(text))) > 2 and encoded.forced_cuts == 0
        assert_same(encoded.tokens, whole(bpe, text))


# Planes 4 to 13 hold nothing but unassigned characters, 15 and 16 private ones.
POINTS = [*range(0x40000), *range(0xE0000, 0xE0200), *range(0xF0000, 0xF0100)]


def test_every_code_point(bpe: Bpe) -> None:
    """Both engines class each character alike, before letters, after them and doubled."""
    points = [chr(point) for point in POINTS if not 0xD800 <= point < 0xE000]
    text = "".join(f"{point}a{point} {point}" for point in points)
    assert_same(with_tiktoken(bpe).encode(text).tokens, without_tiktoken(bpe).encode(text).tokens)


HARD = {
    "3 M spaces": " " * 3_000_000 + "x",
    "10 MB without a space": "x" * 10_000_000,
    "mixed whitespace": "\n \t\r\n\u2028\xa0" * 100_000 + "x",
    "lone surrogates": replace_surrogates("\ud800a\udfff b")[0],
    "NUL": "\0 a\0\0b \0",
    "Chinese": "自然语言处理，" * 50_000,
    "literal specials": "<s>a</s> <mask> <pad><unk>",
}


@pytest.mark.parametrize("name", HARD)
def test_hard_texts(bpe: Bpe, name: str) -> None:
    text = HARD[name]
    encoded = with_tiktoken(bpe).encode(text)
    assert_same(encoded.tokens, without_tiktoken(bpe).encode(text).tokens)
    assert bpe.tokenizer.decode(encoded.tokens.tolist(), skip_special_tokens=False) == text
    assert not np.isin(encoded.tokens, list(vars(bpe.specials).values())).any()


SPECIAL = re.compile("</?s>|<(pad|unk|mask)>")
FORMS = {
    "folder": None,
    "vocab.json and merges.txt": ("vocab.json", "merges.txt"),
    "tokenizer.json": ("tokenizer.json",),
}


def auto_tokenizer(bpe: Bpe, folder: Path, kept: tuple[str, ...] | None) -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoTokenizer

    shutil.rmtree(folder, ignore_errors=True)
    save_bpe(bpe, folder)
    for path in folder.iterdir():
        if kept is not None and path.name not in kept:
            path.unlink()
    # Exports have a config.json: without tokenizer_config.json it says which tokenizer to build.
    (folder / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("form", FORMS)
def test_auto_tokenizer(bpe: Bpe, documents: list[str], tmp_path: Path, form: str) -> None:
    tokenizer = auto_tokenizer(bpe, tmp_path / "tokenizer", FORMS[form])
    encoder = with_tiktoken(bpe)
    assert len(tokenizer) == bpe.size
    assert tokenizer.mask_token_id == bpe.specials.mask
    assert tokenizer.pad_token_id == bpe.specials.pad
    given = tokenizer(documents, verbose=False)["input_ids"]
    for text, ids in zip(documents, given, strict=True):
        if SPECIAL.search(text):  # AutoTokenizer makes a literal `</s>` special, on purpose
            continue
        assert ids[0] == bpe.specials.bos and ids[-1] == bpe.specials.eos
        assert_same(np.array(ids[1:-1], dtype=np.uint16), encoder.encode(text).tokens)
    ids = tokenizer("the<mask> word")["input_ids"]
    before, after = encoder.encode("the").tokens.tolist(), encoder.encode(" word").tokens.tolist()
    assert ids == [0, *before, bpe.specials.mask, *after, 2]


@pytest.mark.parametrize("form", ["folder", "tokenizer.json"])
def test_the_mask_takes_the_space_before_it(bpe: Bpe, tmp_path: Path, form: str) -> None:
    """Not so from vocab.json and merges.txt alone: transformers then builds a plain `<mask>`."""
    tokenizer = auto_tokenizer(bpe, tmp_path / "tokenizer", FORMS[form])
    assert tokenizer("the <mask> word")["input_ids"] == tokenizer("the<mask> word")["input_ids"]
