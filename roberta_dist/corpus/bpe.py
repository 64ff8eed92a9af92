"""Byte-level BPE: trained in RoBERTa's id order, or taken from files.

RoBERTa's order: `<s>`=0 `<pad>`=1 `</s>`=2 `<unk>`=3, the 256 bytes, the merges, `<mask>` last.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)

from roberta_dist.corpus.manifest import SpecialTokens
from roberta_dist.errors import ConfigError
from roberta_dist.runtime.files import atomic_write, write_json

LEADING_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
MASK = "<mask>"
ROLES = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": MASK}
MAX_VOCAB = 65_536
Merges = list[tuple[str, str]]


@dataclass(frozen=True)
class Bpe:
    """A byte-level BPE.

    Attributes:
        vocab: token → id, specials included. Tokens spell bytes as printable characters (GPT-2).
        merges: pairs of tokens, first merged first.
        gpt2_pattern: text is first cut by GPT-2's regular expression, without a prefix space.
        tokenizer: the same as a `tokenizers` object, specials added.
    """

    vocab: dict[str, int]
    merges: Merges
    gpt2_pattern: bool
    tokenizer: Tokenizer

    @property
    def specials(self) -> SpecialTokens:
        """Ids of the five special tokens."""
        return SpecialTokens(**{role: self.vocab[token] for role, token in ROLES.items()})

    @property
    def size(self) -> int:
        """Rows of an embedding: the largest id + 1."""
        return max(self.vocab.values()) + 1

    @property
    def sha256(self) -> str:
        """Identity: the vocabulary and the merges, in order."""
        content = json.dumps([sorted(self.vocab.items()), self.merges], ensure_ascii=True)
        return hashlib.sha256(content.encode()).hexdigest()


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable character of each byte: itself where printable, else from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = {byte: chr(byte) for byte in printable}
    others = [byte for byte in range(256) if byte not in alphabet]
    alphabet.update({byte: chr(256 + number) for number, byte in enumerate(others)})
    return alphabet


def train_bpe(texts: Iterator[str], vocab_size: int) -> Bpe:
    """Train on `texts`; a small corpus may give fewer than `vocab_size` entries."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        special_tokens=list(LEADING_SPECIALS),
        initial_alphabet=[*byte_alphabet().values()],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocab, merges = _model_of(json.loads(tokenizer.to_str()))
    return _build(vocab | {MASK: len(vocab)}, merges)


def load_bpe(path: Path) -> Bpe:
    """Read a tokenizer.json, or a folder that holds one or vocab.json + merges.txt.

    tokenizer.json wins: it alone says how text is cut into words.

    Raises:
        ConfigError: nothing readable there, not a byte-level BPE, or more than 65,536 entries.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        bpe = _load_tokenizer_json(file) if file.is_file() else _load_vocab_and_merges(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"tokenizer.path={path}: not a byte-level BPE tokenizer ({error})",
            "give a folder with vocab.json and merges.txt, or a tokenizer.json",
        ) from error
    if bpe.size > MAX_VOCAB:
        raise ConfigError(
            f"tokenizer.path={path}: ids up to {bpe.size - 1}, and tokens are stored as uint16",
            f"give a tokenizer of at most {MAX_VOCAB} entries",
        )
    missing = [byte for byte, character in byte_alphabet().items() if character not in bpe.vocab]
    if missing:
        raise ConfigError(
            f"tokenizer.path={path}: has no entry for {len(missing)} of the 256 bytes "
            f"(the first is {missing[0]}), so text with them would be lost",
            "give a byte-level BPE that covers every byte",
        )
    return bpe


def _model_of(values: dict[str, Any]) -> tuple[dict[str, int], Merges]:
    """Vocabulary and merges of a tokenizer.json; older ones write a merge as `"left right"`."""
    merges: Merges = []
    for merge in values["model"]["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        merges.append((left, right))
    vocab: dict[str, int] = values["model"]["vocab"]
    return vocab, merges


def _load_vocab_and_merges(folder: Path) -> Bpe:
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    # Only the first line is a comment: "#" followed by something is a merge like any other.
    if lines and lines[0].startswith("#version"):
        lines = lines[1:]
    merges: Merges = []
    for line in lines:
        if line.strip():
            left, right = line.rstrip("\r").split(" ")
            merges.append((left, right))
    return _build(_with_specials(vocab), merges)


def _load_tokenizer_json(file: Path) -> Bpe:
    values = json.loads(file.read_text(encoding="utf-8"))
    model = values["model"]
    if model.get("type", "BPE") != "BPE" or model.get("dropout"):
        raise ValueError(f"model {model.get('type')}, dropout {model.get('dropout')}")
    vocab, merges = _model_of(values)
    cutter = values.get("pre_tokenizer") or {}
    steps = cutter.get("pretokenizers", [cutter])
    byte_level = [step for step in steps if step.get("type") == "ByteLevel"]
    if not byte_level:
        raise ValueError("its pre-tokenizer is not byte-level")
    if any(step.get("add_prefix_space", True) for step in byte_level):
        raise ValueError("it adds a space before each text: set add_prefix_space to false")
    is_gpt2 = (cutter is byte_level[0] or steps == byte_level[:1]) and byte_level[0].get(
        "use_regex", True
    )
    is_plain = is_gpt2 and values.get("normalizer") is None and not model.get("ignore_merges")
    complete = _with_specials(vocab | {t["content"]: t["id"] for t in values["added_tokens"]})
    if is_plain:
        return _build(complete, merges)
    return Bpe(complete, merges, gpt2_pattern=False, tokenizer=_given(values, complete))


def _with_specials(vocab: dict[str, int]) -> dict[str, int]:
    """RoBERTa's five specials, where any is missing: ids are then renumbered in RoBERTa's order."""
    if all(token in vocab for token in ROLES.values()):
        return vocab
    ordinary = [
        t for t, _ in sorted(vocab.items(), key=lambda item: item[1]) if t not in ROLES.values()
    ]
    tokens = [*LEADING_SPECIALS, *ordinary, MASK]
    return {token: number for number, token in enumerate(tokens)}


def _given(values: dict[str, Any], complete: dict[str, int]) -> Tokenizer:
    """The tokenizer of a tokenizer.json, its own way of cutting kept, with the ids of `complete`."""
    model = values["model"] | {"vocab": complete}
    replaced: dict[str, Any] = {
        "post_processor": None,
        "truncation": None,
        "padding": None,
        "added_tokens": [],
    }
    return _finish(Tokenizer.from_str(json.dumps(values | replaced | {"model": model})), complete)


def _build(vocab: dict[str, int], merges: Merges) -> Bpe:
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return Bpe(vocab, merges, gpt2_pattern=True, tokenizer=_finish(tokenizer, vocab))


def _finish(tokenizer: Tokenizer, vocab: dict[str, int]) -> Tokenizer:
    """RoBERTa's specials and `<s> … </s>` template."""
    in_order = sorted(ROLES.values(), key=vocab.__getitem__)
    tokenizer.add_special_tokens(
        [AddedToken(t, lstrip=t == MASK, normalized=False, special=True) for t in in_order]
    )
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", vocab["</s>"]), ("<s>", vocab["<s>"]), add_prefix_space=False
    )
    return tokenizer


def save_bpe(bpe: Bpe, folder: Path) -> None:
    """Write the files that transformers' AutoTokenizer and `load_bpe` read; vocab.json last.

    Raises:
        StorageError: the disk is full or `folder` cannot be written.
    """
    ordered = dict(sorted(bpe.vocab.items(), key=lambda item: item[1]))
    merges = "".join(f"{left} {right}\n" for left, right in bpe.merges)
    atomic_write(folder / "merges.txt", "#version: 0.2\n" + merges)
    atomic_write(folder / "tokenizer.json", bpe.tokenizer.to_str(pretty=True))
    names = {
        "bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>",
        "pad_token": "<pad>", "unk_token": "<unk>",
    }  # fmt: skip
    mask = {
        "content": MASK, "lstrip": True, "normalized": False, "rstrip": False, "single_word": False
    }  # fmt: skip
    write_json(folder / "special_tokens_map.json", names | {"mask_token": mask})
    write_json(
        folder / "tokenizer_config.json",
        names
        | {
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "errors": "replace",
            "mask_token": mask | {"__type": "AddedToken"},
            # RobertaTokenizer rebuilds from vocab and merges, with GPT-2's pattern.
            "tokenizer_class": "RobertaTokenizer"
            if bpe.gpt2_pattern
            else "PreTrainedTokenizerFast",
            "trim_offsets": True,
        },
    )
    atomic_write(folder / "vocab.json", json.dumps(ordered, ensure_ascii=False))
