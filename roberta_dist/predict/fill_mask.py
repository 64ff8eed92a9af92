"""`roberta-dist predict task=fill_mask`: the likeliest tokens for each `<mask>`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from roberta_dist.config.roots import PredictConfig
from roberta_dist.errors import ConfigError
from roberta_dist.interop.huggingface import stay_offline

MASK = "<mask>"


def check_request(config: PredictConfig) -> Path:
    """The model's folder, once every text and the folder are seen to be usable.

    Raises:
        ConfigError: no such folder, or a text without a mask.
    """
    folder = Path(config.model_path)
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"model_path={folder}: is not an exported folder (no config.json in it)",
            "run `roberta-dist export run_dir=RUN`, then give model_path=RUN/export",
        )
    for text in config.text:
        if MASK not in text:
            raise ConfigError(f"text={text!r}: has no {MASK}", f"put {MASK} where a word is hidden")
    return folder


def fill_masks(folder: Path, texts: list[str], top_k: int) -> list[list[list[tuple[str, float]]]]:
    """For each text, for each of its masks: `top_k` (token, probability), the likeliest first.

    Raises:
        ConfigError: a text is longer than the model's rows, or `top_k` than its vocabulary.
    """
    stay_offline()
    from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model: Any = AutoModelForMaskedLM.from_pretrained(folder, local_files_only=True)
    if top_k > model.config.vocab_size:
        raise ConfigError(f"top_k={top_k}: the vocabulary has {model.config.vocab_size} entries")
    for text in texts:
        tokens = len(tokenizer(text, verbose=False)["input_ids"])
        if tokens > tokenizer.model_max_length:
            raise ConfigError(
                f"text={text[:60]!r}…: has {tokens} tokens, the model reads up to "
                f"{tokenizer.model_max_length}",
                "shorten it",
            )
    fill: Any = pipeline("fill-mask", model=model, tokenizer=tokenizer, top_k=top_k)
    filled = []
    for text in texts:
        masks = fill(text)
        masks = masks if isinstance(masks[0], list) else [masks]  # one mask comes unnested
        filled.append([[(hit["token_str"], hit["score"]) for hit in hits] for hits in masks])
    return filled


def predict(config: PredictConfig) -> int:
    """Print the candidates of each mask of each text.

    Returns:
        Exit code 0.

    Raises:
        ConfigError: see `check_request` and `fill_masks`.
    """
    folder = check_request(config)
    texts = list(config.text)
    for text, masks in zip(texts, fill_masks(folder, texts, config.top_k), strict=True):
        print(text)
        for number, hits in enumerate(masks, start=1):
            print(f"  mask {number}: " + "  ".join(f"{token!r} {p:.3f}" for token, p in hits))
    return 0
