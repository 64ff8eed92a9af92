"""Reading a Hugging Face RoBERTa folder as our weights and sizes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load_file

from roberta_dist.config.model import ModelConfig
from roberta_dist.errors import ConfigError, DataFault
from roberta_dist.interop.huggingface import POSITION_OFFSET, Weights, from_hf_state_dict


@dataclass(frozen=True)
class ImportedModel:
    """A folder's weights under our names, its sizes and its vocabulary."""

    weights: Weights
    model: ModelConfig
    vocab_size: int


def read_folder(folder: Path) -> ImportedModel:
    """Read `config.json` and `model.safetensors`; nothing is unpickled.

    Raises:
        ConfigError: not such a folder.
        DataFault: damaged, or not a RoBERTa this package can compute.
    """
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ConfigError(
                f"{folder}: has no {name}, so not an exported model",
                "export one with `roberta-dist export run_dir=RUN`",
            )
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if values["model_type"] != "roberta" or values["hidden_act"] != "gelu":
            raise DataFault(
                f"{folder}: model_type={values['model_type']} hidden_act={values['hidden_act']}, "
                "only roberta with exact gelu is read"
            )
        model = ModelConfig(
            num_layers=values["num_hidden_layers"],
            hidden_size=values["hidden_size"],
            ffn_size=values["intermediate_size"],
            num_heads=values["num_attention_heads"],
            max_positions=values["max_position_embeddings"] - POSITION_OFFSET,
            layer_norm_eps=values["layer_norm_eps"],
        )
        vocab_size = int(values["vocab_size"])
        state = load_file(folder / "model.safetensors")
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise DataFault(f"{folder}: damaged ({error})") from error
    return ImportedModel(from_hf_state_dict(state, model, vocab_size), model, vocab_size)
