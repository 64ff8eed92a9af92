"""Train by Hugging Face's Trainer what a run of ours trained: `python tools/hf_trainer.py RUN RESULT.json`.

From RUN/config.yaml `transformers.Trainer` gets the same rows in the same order with the same masks,
the same initial weights, learning rate of every step, AdamW and clipping, in one process. The rest is
as it comes: sdpa attention, scores of the whole vocabulary at every position, Trainer's own
optimizer, parameter groups and loop. What differs are the random numbers of dropout.

RoBERTa of transformers adds one token-type row to every token. Ours has none, so that it is zero
and stays zero.

RESULT.json: `loss` of every step in nats a masked token, `seconds` of Trainer's loop
(`train_runtime`), `vocab_size`, and under `trainer` what it took by itself, with versions.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import IterableDataset

from roberta_dist.config.load import load_yaml
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.errors import ConfigError, RobertaDistError
from roberta_dist.interop.huggingface import hf_config, stay_offline, to_hf_state_dict
from roberta_dist.model.encoder import RobertaForPretraining
from roberta_dist.model.init import init_weights
from roberta_dist.optim.schedule import learning_rate
from roberta_dist.runtime.files import write_json
from roberta_dist.runtime.rundir import RunPaths
from roberta_dist.runtime.world import World
from roberta_dist.stream.batch import Batch
from roberta_dist.stream.loader import RankReader
from roberta_dist.stream.open import Stream, open_stream

IGNORED = -100
"""Label of a position that torch's cross-entropy leaves out."""


@dataclass(frozen=True)
class Row:
    """One masked row: ids and labels, int64 [L]; labels are −100 where nothing is predicted."""

    tokens_L: NDArray[np.int64]
    labels_L: NDArray[np.int64]


def rows_of(batch: Batch) -> Iterator[Row]:
    """The rows of a flat batch."""
    labels_T = np.full(len(batch.tokens_T), IGNORED)
    labels_T[batch.masked_index_M] = batch.labels_M
    ends = batch.cu_seqlens[1:-1]
    tokens = np.split(batch.tokens_T.astype(np.int64), ends)
    return map(Row, tokens, np.split(labels_T, ends))


class StreamRows(IterableDataset[Row]):
    """The rows of a run's steps, one after another.

    Args:
        stream: of the run.
        steps: how many it has.
    """

    def __init__(self, stream: Stream, steps: int) -> None:
        self.stream = stream
        self.steps = steps

    def __iter__(self) -> Iterator[Row]:
        rows = self.stream.plan.batch_rows(0)
        reader = RankReader(self.stream, World(), rows)
        try:
            for step in range(self.steps):
                (batch,) = reader.micro_batches(step * rows)
                yield from rows_of(batch)
        finally:
            reader.close()


def collate(rows: Sequence[Row], pad: int) -> dict[str, Tensor]:
    """Rows as transformers' inputs, int64 [R, L], padded to the longest."""
    shape = len(rows), max(len(row.tokens_L) for row in rows)
    input_ids, labels = torch.full(shape, pad), torch.full(shape, IGNORED)
    attention_mask = torch.zeros(shape, dtype=torch.int64)
    for index, row in enumerate(rows):
        length = len(row.tokens_L)
        input_ids[index, :length] = torch.from_numpy(row.tokens_L)
        labels[index, :length] = torch.from_numpy(row.labels_L)
        attention_mask[index, :length] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def build_model(config: PretrainConfig, stream: Stream) -> Any:
    """RobertaForMaskedLM with our initial weights."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    vocab_size = stream.manifest.vocab_size
    ours = RobertaForPretraining(config.model, config.kernels, vocab_size)
    init_weights(ours, config.train.seed)
    weights = {name: tensor.numpy() for name, tensor in ours.state_dict().items()}
    state = to_hf_state_dict(weights, config.model, vocab_size)
    sizes = hf_config(config.model, vocab_size, stream.manifest.special_tokens)
    model = RobertaForMaskedLM(RobertaConfig(**sizes))
    loaded = model.load_state_dict(
        {name: torch.from_numpy(value) for name, value in state.items()}, strict=False
    )
    tied = {"lm_head.decoder.weight", "lm_head.decoder.bias"}
    assert not loaded.unexpected_keys and set(loaded.missing_keys) <= tied, loaded
    model.roberta.embeddings.token_type_embeddings.weight.requires_grad_(False)
    return model


def build_trainer(config: PretrainConfig, stream: Stream, folder: str) -> Any:
    """Trainer with our data, learning rates and hyperparameters; `folder` is for what it writes."""
    from transformers import PrinterCallback, Trainer, TrainingArguments

    optim, steps = config.optim, config.schedule.max_steps
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=stream.plan.batch_rows(0),
        learning_rate=optim.lr,
        adam_beta1=optim.beta1,
        adam_beta2=optim.beta2,
        adam_epsilon=optim.eps,
        weight_decay=optim.weight_decay,
        max_grad_norm=optim.max_grad_norm,
        seed=config.train.seed,
        logging_steps=1,
        save_strategy="no",
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=True,
    )

    class ScheduledTrainer(Trainer):
        """Trainer with the run's learning rates."""

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
            def share(step: int) -> float:
                return learning_rate(step, optim.lr, config.schedule) / optim.lr

            paced: Any = optimizer or self.optimizer
            self.lr_scheduler = LambdaLR(paced, share)
            return self.lr_scheduler

    trainer = ScheduledTrainer(
        model=build_model(config, stream),
        args=arguments,
        train_dataset=StreamRows(stream, steps),
        data_collator=partial(collate, pad=stream.manifest.special_tokens.pad),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def check(config: PretrainConfig) -> None:
    """Refuse a run that Trainer would not train the same way.

    Raises:
        ConfigError: what differs.
    """
    same = {
        "optim.name": (config.optim.name.value, "adamw"),
        "optim.decay_bias_and_norm": (config.optim.decay_bias_and_norm, False),
        "engine.precision": (config.engine.precision.value, "fp32"),
        "data.format is of pairs": (config.data.format.is_pair, False),
        "data.phases": (config.data.phases, []),
    }
    for key, (value, expected) in same.items():
        if value != expected:
            raise ConfigError(
                f"{key}: {value}, but Trainer would train with {expected}",
                "compare a run of AdamW in fp32 with one phase and no pairs",
            )


def train(config: PretrainConfig) -> dict[str, Any]:
    """Train to `schedule.max_steps`; what RESULT.json holds.

    Raises:
        ConfigError: the run is none that Trainer would train the same way.
    """
    check(config)
    stream = open_stream(
        config.data, config.masking, config.train.seed, config.train.global_batch_size, False
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(config, stream, folder)
        seconds = trainer.train().metrics["train_runtime"]
    return {
        "loss": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "seconds": seconds,
        "vocab_size": stream.manifest.vocab_size,
        "trainer": {
            "attention": trainer.model.config._attn_implementation,
            "optimizer": trainer.args.optim.value,
            **{name: version(name) for name in ("torch", "transformers", "accelerate")},
        },
    }


def main() -> int:
    """Train and write RESULT.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dir", type=Path, help="run folder whose config.yaml is followed")
    parser.add_argument("result", type=Path, help="JSON to write")
    arguments = parser.parse_args()
    stay_offline()
    try:
        config = load_yaml(PretrainConfig, RunPaths(arguments.run_dir).config_yaml)
        write_json(arguments.result, train(config))
    except RobertaDistError as error:
        print(f"tools/hf_trainer.py: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
