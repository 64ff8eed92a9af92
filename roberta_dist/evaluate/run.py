"""`roberta-dist evaluate`: held-out loss of a checkpoint or an exported folder, in one process."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from roberta_dist.checkpoint.reader import find_checkpoint, load_weights
from roberta_dist.config.data import DataConfig, MaskingConfig
from roberta_dist.config.load import load_yaml
from roberta_dist.config.model import KernelsConfig, ModelConfig
from roberta_dist.config.roots import EvaluateVerbConfig, PretrainConfig
from roberta_dist.corpus.manifest import open_manifest
from roberta_dist.corpus.opening import open_store
from roberta_dist.errors import ConfigError
from roberta_dist.interop.folder import read_folder
from roberta_dist.interop.huggingface import Weights
from roberta_dist.model.encoder import RobertaForPretraining
from roberta_dist.runtime.world import World
from roberta_dist.stream.held_out import HeldOut, open_held_out
from roberta_dist.stream.measure import Sums, measure


@dataclass(frozen=True)
class Subject:
    """What is measured, and on what."""

    label: str
    weights: Weights
    model: ModelConfig
    data: DataConfig
    masking: MaskingConfig


def _from_run(config: EvaluateVerbConfig, run_dir: Path) -> Subject:
    run = load_yaml(PretrainConfig, run_dir / "config.yaml")
    checkpoint = find_checkpoint(run_dir, config.step)
    data = replace(
        run.data,
        path=config.corpus_path or run.data.path,
        corpora=None if config.corpus_path else run.data.corpora,
        weights=None if config.corpus_path else run.data.weights,
        phases=[],
        sequence_length=config.sequence_length or run.data.sequence_length,
    )
    return Subject(str(checkpoint), load_weights(checkpoint), run.model, data, run.masking)


def _from_folder(config: EvaluateVerbConfig, folder: Path, corpus: str) -> Subject:
    imported = read_folder(folder)
    vocab_size = open_manifest(open_store(corpus).child("held_out")).vocab_size
    if vocab_size != imported.vocab_size:
        raise ConfigError(
            f"{folder} has {imported.vocab_size} entries, {corpus} was tokenised with {vocab_size}",
            "prepare the text with the model's tokenizer: tokenizer.path=FOLDER",
        )
    length = config.sequence_length or imported.model.max_positions
    data = DataConfig(path=corpus, sequence_length=length)
    return Subject(str(folder), imported.weights, imported.model, data, MaskingConfig())


def held_out_sums(subject: Subject, held_out: HeldOut, device: torch.device) -> Sums:
    """Losses over the held-out rows; with next-sentence figures where the format has pairs."""
    model = RobertaForPretraining(
        subject.model,
        KernelsConfig(),
        held_out.manifest.vocab_size,
        next_sentence=subject.data.format.is_pair,
    )
    model.load_state_dict({name: torch.from_numpy(w) for name, w in subject.weights.items()})
    model.eval().to(device)
    batches = tqdm(held_out.batches(World()), "evaluating", unit="batch")
    return Sums.of(measure(model, batches, device))


def evaluate(config: EvaluateVerbConfig) -> int:
    """Print the held-out loss and perplexity beside the held-out unigram entropy.

    Raises:
        ConfigError: no such run, checkpoint, folder or corpus.
        DataFault: one of them is damaged.
    """
    if config.run_dir is not None:
        subject = _from_run(config, Path(config.run_dir))
    else:
        assert config.model_path is not None and config.corpus_path is not None  # the config's rule
        subject = _from_folder(config, Path(config.model_path), config.corpus_path)
    length, positions = subject.data.sequence_length, subject.model.max_positions
    if length > positions:
        raise ConfigError(f"sequence_length={length}: {subject.label} has {positions} positions")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for held_out in open_held_out(subject.data, subject.masking, config.evaluate):
        sums = held_out_sums(subject, held_out, device)
        print(
            f"{subject.label}: {held_out.rows} held-out rows of {held_out.name}, "
            f"{sums.masked} masked tokens"
        )
        for name, loss in (
            ("held-out loss", sums.loss),
            ("held-out unigram entropy", held_out.manifest.unigram_entropy),
        ):
            print(f"{name:<25} {loss:.4f} nats (perplexity {math.exp(min(loss, 700)):.1f})")
        if sums.nsp_loss is not None:
            right = f"{sums.correct} of {sums.pairs} pairs told right"
            print(f"{'held-out next sentence':<25} {sums.nsp_loss:.4f} nats ({right})")
    return 0
