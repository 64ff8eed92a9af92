"""Weights and a tokenizer become a Hugging Face folder, or nothing does."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from roberta_dist.config.model import ModelConfig
from roberta_dist.corpus.manifest import Manifest
from roberta_dist.errors import DataFault
from roberta_dist.export.card import render_card
from roberta_dist.export.folder import replaced_folder
from roberta_dist.interop.huggingface import (
    Weights,
    has_next_sentence,
    hf_config,
    stay_offline,
    to_hf_state_dict,
)
from roberta_dist.runtime.files import atomic_write, write_json

LOGGER = logging.getLogger(__name__)
LEFT_OUT = "RobertaForMaskedLM has no next-sentence head: the trained one is left out"
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer.json")
WRITTEN = (
    "config.json",
    "model.safetensors",
    "tokenizer_config.json",
    "README.md",
    *TOKENIZER_FILES,
)
"""Everything an export consists of."""


def _tokenizer_config(tokenizer_dir: Path, model: ModelConfig) -> dict[str, Any]:
    """The prepared settings, with the mask as tokenizer.json has it: RoBERTa's takes the space
    before it, and a plain string would not where transformers builds from vocab and merges."""
    path = tokenizer_dir / "tokenizer_config.json"
    given = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    tokenizer = json.loads((tokenizer_dir / "tokenizer.json").read_text(encoding="utf-8"))
    masks = [token for token in tokenizer["added_tokens"] if token["content"] == "<mask>"]
    mask = {key: value for token in masks for key, value in token.items() if key != "id"}
    return {
        "tokenizer_class": "RobertaTokenizer",
        "bos_token": "<s>",
        "cls_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "unk_token": "<unk>",
        "add_prefix_space": False,
        **given,
        "mask_token": {"__type": "AddedToken", **mask},
        "model_max_length": model.max_positions,
    }


def _copy_tokenizer(tokenizer_dir: Path, folder: Path, model: ModelConfig) -> None:
    try:
        for name in TOKENIZER_FILES:
            atomic_write(folder / name, (tokenizer_dir / name).read_bytes())
        write_json(folder / "tokenizer_config.json", _tokenizer_config(tokenizer_dir, model))
    except (FileNotFoundError, KeyError, TypeError, ValueError) as error:
        raise DataFault(
            f"{tokenizer_dir}: not a prepared tokenizer ({error})", "prepare the corpus again"
        ) from error


def export_weights(
    weights: Weights,
    model_config: ModelConfig,
    manifest: Manifest,
    tokenizer_dir: Path,
    output: Path,
    facts: Mapping[str, object],
    tolerance: float = 1e-4,
) -> float:
    """Write `output`, load it with transformers, and keep it only if the logits agree.

    Args:
        weights: fp32, under the names of the module's state dict; a next-sentence head is left out,
            which a warning and the card say.
        model_config: sizes they were trained with.
        manifest: training split, for the vocabulary and the card.
        tokenizer_dir: CORPUS/tokenizer.
        output: folder to write; an earlier export there is replaced, anything else refused.
        facts: name → value, for the card.
        tolerance: largest absolute logit difference accepted.

    Returns:
        The largest absolute logit difference.

    Raises:
        ConfigError: `output` holds something that is not an export.
        DataFault: the weights do not fit the model, the tokenizer is not the corpus's, or the
            logits differ. `output` is then as it was.
    """
    stay_offline()
    from roberta_dist.export.compare import check_tokenizer, max_difference

    vocab_size, special = manifest.vocab_size, manifest.special_tokens
    with replaced_folder(output, WRITTEN) as folder:
        state = to_hf_state_dict(weights, model_config, vocab_size)
        write_json(folder / "config.json", hf_config(model_config, vocab_size, special))
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        _copy_tokenizer(tokenizer_dir, folder, model_config)
        check_tokenizer(folder, vocab_size, special)
        difference = max_difference(folder, weights, model_config, vocab_size, special.pad)
        if not difference <= tolerance:  # also where it is NaN
            raise DataFault(
                f"transformers' logits differ from ours by {difference:.3g}, "
                f"more than tolerance={tolerance:.3g}; nothing was exported",
                "report this with the versions `roberta-dist doctor` prints, or raise tolerance=",
            )
        if has_next_sentence(weights):
            LOGGER.warning(LEFT_OUT)
            facts = {**facts, "next-sentence head": LEFT_OUT}
        card = render_card(model_config, manifest, facts, difference, tolerance)
        atomic_write(folder / "README.md", card)
    return difference
