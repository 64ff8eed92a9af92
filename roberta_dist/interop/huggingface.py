"""Our weights and sizes as `transformers`' RobertaForMaskedLM has them, and back.

Arrays only: neither torch nor transformers is needed. Where the two differ:

* our query, key and value are one matrix [3H, H]; theirs are three;
* our vocabulary table is padded to a multiple of 64; theirs is not;
* theirs adds a token-type row to every token: exported as zeros, folded into the position table
  (which is also added to every token) on import;
* the output layer is tied to the table in both, so only its bias is stored;
* ours may have a next-sentence head, for which theirs has no place: it is left out.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roberta_dist.config.model import ModelConfig, padded_vocabulary
from roberta_dist.corpus.manifest import SpecialTokens
from roberta_dist.errors import DataFault

Weights = dict[str, NDArray[Any]]

POSITION_OFFSET = 2
_WORD = "roberta.embeddings.word_embeddings.weight"
_TYPE = "roberta.embeddings.token_type_embeddings.weight"
_POSITION = "roberta.embeddings.position_embeddings.weight"
_IGNORED = ("roberta.pooler.", "roberta.embeddings.position_ids")


def stay_offline() -> None:
    """Keep the Hugging Face libraries off the network and quiet. Call before importing them."""
    for name in ("OFFLINE", "DISABLE_TELEMETRY", "DISABLE_PROGRESS_BARS"):
        os.environ[f"HF_HUB_{name}"] = "1"


def hf_config(model: ModelConfig, vocab_size: int, special: SpecialTokens) -> dict[str, Any]:
    """The content of `config.json`.

    Raises:
        DataFault: `<pad>` is not token 1, from which transformers derives position ids.
    """
    if special.pad != POSITION_OFFSET - 1:
        raise DataFault(
            f"special_tokens.pad={special.pad}: transformers' RoBERTa numbers positions from "
            f"pad + 1, this model from {POSITION_OFFSET}",
            "prepare the corpus with a tokenizer in RoBERTa's order (<s> <pad> </s> <unk>)",
        )
    return {
        "architectures": ["RobertaForMaskedLM"],
        "model_type": "roberta",
        "vocab_size": vocab_size,
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "intermediate_size": model.ffn_size,
        "hidden_act": "gelu",
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": model.attention_dropout,
        "max_position_embeddings": model.max_positions + POSITION_OFFSET,
        "type_vocab_size": 1,
        "initializer_range": model.init_std,
        "layer_norm_eps": model.layer_norm_eps,
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
        "bos_token_id": special.bos,
        "pad_token_id": special.pad,
        "eos_token_id": special.eos,
        "torch_dtype": "float32",
    }


def _pairs(model: ModelConfig) -> list[tuple[str, str, tuple[int, ...]]]:
    """(our name, their name, shape) of every tensor that is the same on both sides."""
    width, ffn = model.hidden_size, model.ffn_size
    square, norm = (width, width), (width,)
    modules: list[tuple[str, str, tuple[int, ...]]] = [
        ("embedding_norm", "roberta.embeddings.LayerNorm", norm),
        ("head.dense", "lm_head.dense", square),
        ("head.norm", "lm_head.layer_norm", norm),
    ]
    for index in range(model.num_layers):
        ours, theirs = f"layers.{index}", f"roberta.encoder.layer.{index}"
        modules += [
            (f"{ours}.attention.out", f"{theirs}.attention.output.dense", square),
            (f"{ours}.attention_norm", f"{theirs}.attention.output.LayerNorm", norm),
            (f"{ours}.ffn_in", f"{theirs}.intermediate.dense", (ffn, width)),
            (f"{ours}.ffn_out", f"{theirs}.output.dense", (width, ffn)),
            (f"{ours}.ffn_norm", f"{theirs}.output.LayerNorm", norm),
        ]
    return [
        (f"{ours}.{kind}", f"{theirs}.{kind}", shape if kind == "weight" else shape[:1])
        for ours, theirs, shape in modules
        for kind in ("weight", "bias")
    ]


def _qkv(model: ModelConfig) -> list[tuple[str, list[str], tuple[int, ...]]]:
    """(our fused name, their query, key and value, shape of each of the three)."""
    width = model.hidden_size
    return [
        (
            f"layers.{index}.attention.qkv.{kind}",
            [
                f"roberta.encoder.layer.{index}.attention.self.{part}.{kind}"
                for part in ("query", "key", "value")
            ],
            shape,
        )
        for index in range(model.num_layers)
        for kind, shape in (("weight", (width, width)), ("bias", (width,)))
    ]


def _next_sentence(width: int) -> dict[str, tuple[int, ...]]:
    """Name → shape of the weights of the next-sentence head."""
    return {
        "next_sentence.dense.weight": (width, width),
        "next_sentence.dense.bias": (width,),
        "next_sentence.classifier.weight": (2, width),
        "next_sentence.classifier.bias": (2,),
    }


def has_next_sentence(weights: Weights) -> bool:
    """Whether our weights were trained on pairs."""
    return "next_sentence.dense.weight" in weights


class _Source:
    """A state dict that is taken apart: what is missing or left over is an error."""

    def __init__(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        self.tensors = dict(tensors)

    def take(self, name: str, *shape: int) -> NDArray[Any]:
        tensor = self.tensors.pop(name, None)
        if tensor is None:
            raise DataFault(f"weight {name} is missing", "use the configuration it was saved with")
        if tensor.shape != shape:
            raise DataFault(
                f"weight {name} has shape {list(tensor.shape)}, expected {list(shape)}",
                "use the configuration it was saved with",
            )
        return tensor

    def finish(self) -> None:
        if self.tensors:
            names = sorted(self.tensors)
            raise DataFault(
                f"{len(names)} unknown weights, the first {names[0]}",
                "use the configuration it was saved with",
            )


def to_hf_state_dict(weights: Weights, model: ModelConfig, vocab_size: int) -> Weights:
    """Our weights under transformers' names, fp32, without the vocabulary's padding.

    A next-sentence head is checked like the rest and left out.

    Raises:
        DataFault: a weight is missing, unknown or of another shape.
    """
    source, width = _Source(weights), model.hidden_size
    rows = padded_vocabulary(vocab_size)
    state: Weights = {
        _WORD: source.take("vocabulary.weight", rows, width)[:vocab_size],
        _POSITION: source.take("positions.weight", model.max_positions + POSITION_OFFSET, width),
        _TYPE: np.zeros((1, width), np.float32),
        "lm_head.bias": source.take("vocabulary.bias", rows)[:vocab_size],
    }
    for ours, theirs, shape in _pairs(model):
        state[theirs] = source.take(ours, *shape)
    for ours, parts, (rows, *columns) in _qkv(model):
        fused = source.take(ours, 3 * rows, *columns)
        state.update(zip(parts, np.split(fused, 3), strict=True))
    if has_next_sentence(weights):
        for name, shape in _next_sentence(width).items():
            source.take(name, *shape)
    source.finish()
    return {name: np.ascontiguousarray(value, np.float32) for name, value in state.items()}


def from_hf_state_dict(
    state: Mapping[str, NDArray[Any]], model: ModelConfig, vocab_size: int
) -> Weights:
    """A RobertaForMaskedLM state dict as our weights, fp32, the vocabulary padded with zeros.

    Raises:
        DataFault: a weight is missing, unknown or of another shape, or the output layer is not
            tied to the word embeddings.
    """
    kept = {name: value for name, value in state.items() if not name.startswith(_IGNORED)}
    source, width = _Source(kept), model.hidden_size
    word = source.take(_WORD, vocab_size, width)
    bias = source.take("lm_head.bias", vocab_size)
    for name, tied in (("lm_head.decoder.weight", word), ("lm_head.decoder.bias", bias)):
        if not np.array_equal(source.tensors.pop(name, tied), tied):
            raise DataFault(
                f"weight {name} is not tied to the one it should equal",
                "only models with a tied output layer can be imported",
            )
    positions = source.take(_POSITION, model.max_positions + POSITION_OFFSET, width)
    padding = padded_vocabulary(vocab_size) - vocab_size
    weights: Weights = {
        "vocabulary.weight": np.pad(word, ((0, padding), (0, 0))),
        "vocabulary.bias": np.pad(bias, (0, padding)),
        "positions.weight": positions + source.take(_TYPE, 1, width),
    }
    for ours, theirs, shape in _pairs(model):
        weights[ours] = source.take(theirs, *shape)
    for ours, parts, shape in _qkv(model):
        weights[ours] = np.concatenate([source.take(part, *shape) for part in parts])
    source.finish()
    return {name: np.ascontiguousarray(value, np.float32) for name, value in weights.items()}
