"""Tokenizers: trained in RoBERTa's order, loaded from every file form, refused where unfit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from roberta_dist.corpus.bpe import Bpe, byte_alphabet, load_bpe, save_bpe, train_bpe
from roberta_dist.corpus.encode import Encoder, tiktoken_agrees
from roberta_dist.errors import ConfigError

pytestmark = pytest.mark.unit

TEXT = ["The quick brown fox jumps over the lazy dog.\n", "# the fox, the dog: thé 中文"] * 30


@pytest.fixture(scope="module")
def bpe() -> Bpe:
    return train_bpe(iter(TEXT), 300)


def write_gpt2(folder: Path, bpe: Bpe) -> None:
    """As GPT-2 publishes it: no specials of RoBERTa's, `<|endoftext|>` last."""
    tokens = [*byte_alphabet().values(), *(a + b for a, b in bpe.merges), "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in bpe.merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines))


def test_byte_alphabet_is_the_one_of_tokenizers() -> None:
    assert sorted(byte_alphabet().values()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
    for character in "\0\n é\xff中":
        raw = character.encode()
        assert cut(character)[0][0] == "".join(byte_alphabet()[byte] for byte in raw)


def test_trained_ids_have_robertas_order(bpe: Bpe) -> None:
    by_id = sorted(bpe.vocab, key=bpe.vocab.__getitem__)
    assert by_id[:4] == ["<s>", "<pad>", "</s>", "<unk>"] and by_id[-1] == "<mask>"
    assert set(by_id[4:260]) == set(byte_alphabet().values())
    assert by_id[260:-1] == [a + b for a, b in bpe.merges]
    assert sorted(bpe.vocab.values()) == [*range(300)] and bpe.size == 300


def test_training_does_not_depend_on_the_order_of_texts(bpe: Bpe) -> None:
    assert train_bpe(iter(TEXT[::-1]), 300).sha256 == bpe.sha256
    assert train_bpe(iter(TEXT), 301).sha256 != bpe.sha256


@pytest.mark.parametrize("kept", [("tokenizer.json",), ("vocab.json", "merges.txt")])
def test_saved_and_loaded_from_either_form(bpe: Bpe, tmp_path: Path, kept: tuple[str, ...]) -> None:
    save_bpe(bpe, tmp_path)
    for path in tmp_path.iterdir():
        if path.name not in kept:
            path.unlink()
    loaded = load_bpe(tmp_path)
    assert loaded.sha256 == bpe.sha256 and loaded.merges == bpe.merges and loaded.gpt2_pattern


def test_a_tokenizer_json_may_be_named_itself(bpe: Bpe, tmp_path: Path) -> None:
    save_bpe(bpe, tmp_path)
    assert load_bpe(tmp_path / "tokenizer.json").sha256 == bpe.sha256


def test_gpt2s_files_get_robertas_specials(bpe: Bpe, tmp_path: Path) -> None:
    write_gpt2(tmp_path, bpe)
    loaded = load_bpe(tmp_path)
    assert vars(loaded.specials) == {
        "bos": 0,
        "pad": 1,
        "eos": 2,
        "unk": 3,
        "mask": loaded.size - 1,
    }
    assert loaded.size == 256 + len(bpe.merges) + 1 + 5
    assert loaded.vocab["<|endoftext|>"] == loaded.size - 2
    tokens = Encoder(loaded).encode(TEXT[0] + "<|endoftext|>").tokens.tolist()
    assert loaded.vocab["<|endoftext|>"] not in tokens
    assert loaded.tokenizer.decode(tokens) == TEXT[0] + "<|endoftext|>"


def test_ids_in_another_order_are_kept(bpe: Bpe, tmp_path: Path) -> None:
    """RoBERTa's own vocabulary is ordered by frequency, not by merges."""
    ordinary = sorted(t for t in bpe.vocab if not t.startswith("<") or len(t) < 3)
    shuffled = ["<s>", "<pad>", "</s>", "<unk>", *ordinary, "<mask>"]
    mixed = {token: number for number, token in enumerate(shuffled)}
    assert mixed.keys() == bpe.vocab.keys()
    (tmp_path / "vocab.json").write_text(json.dumps(mixed))
    (tmp_path / "merges.txt").write_text("\n".join(f"{a} {b}" for a, b in bpe.merges))
    loaded = load_bpe(tmp_path)
    assert loaded.vocab == mixed
    mine = Encoder(loaded).encode(TEXT[1])
    spelled = [loaded.tokenizer.id_to_token(int(t)) for t in mine.tokens]
    assert spelled == [
        bpe.tokenizer.id_to_token(int(t)) for t in Encoder(bpe).encode(TEXT[1]).tokens
    ]


def test_tiktoken_is_left_where_two_merges_have_one_product() -> None:
    alphabet = byte_alphabet().values()
    vocab = {token: i for i, token in enumerate([*alphabet, "ab", "bc", "abc"])}
    merges = [("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    assert not tiktoken_agrees(Bpe(vocab, merges, True, tokenizer))
    # A product that its own merges never reach: "bc" is merged first, "ab" then does not exist.
    merges = [("b", "c"), ("a", "b"), ("ab", "c")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    assert not tiktoken_agrees(Bpe(vocab, merges, True, tokenizer))
    merges = [("a", "b"), ("b", "c"), ("ab", "c")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    assert tiktoken_agrees(Bpe(vocab, merges, True, tokenizer))
    del vocab["Ċ"]
    assert not tiktoken_agrees(Bpe(vocab, merges, True, tokenizer))


def test_another_way_of_cutting_words_is_kept(bpe: Bpe, tmp_path: Path) -> None:
    save_bpe(bpe, tmp_path)
    values = json.loads((tmp_path / "tokenizer.json").read_text())
    values["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": r"\p{N}|[^\p{N}]+"}, "behavior": "Isolated",
             "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
             "use_regex": False},
        ],
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    loaded = load_bpe(tmp_path)
    encoder = Encoder(loaded)
    assert encoder.backend == "tokenizers"
    tokens = encoder.encode("the fox 42 </s>").tokens.tolist()
    assert loaded.tokenizer.decode(tokens, skip_special_tokens=False) == "the fox 42 </s>"
    save_bpe(loaded, tmp_path / "again")
    assert Encoder(load_bpe(tmp_path / "again")).encode("the fox 42 </s>").tokens.tolist() == tokens


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, "not byte-level"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "add_prefix_space"),
        ({"model": {"type": "WordPiece"}}, "WordPiece"),
        ({"model": []}, "not a byte-level BPE"),
    ],
)
def test_unfit_tokenizers_are_refused(
    bpe: Bpe, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    save_bpe(bpe, tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=message):
        load_bpe(path)


def test_more_than_uint16_ids_are_refused(bpe: Bpe, tmp_path: Path) -> None:
    vocab = bpe.vocab | {f"extra{i}": bpe.size + i for i in range(65_536 - bpe.size + 1)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(ConfigError, match="uint16"):
        load_bpe(tmp_path)


def test_missing_path_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        load_bpe(tmp_path / "nowhere")
