"""`roberta-dist export`: a run's checkpoint as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

from roberta_dist.checkpoint.reader import find_checkpoint, load_weights, open_checkpoint
from roberta_dist.config.data import DataConfig
from roberta_dist.config.load import load_yaml
from roberta_dist.config.roots import ExportConfig, PretrainConfig
from roberta_dist.corpus.manifest import open_manifest
from roberta_dist.corpus.tokenizer_folder import local_tokenizer
from roberta_dist.errors import ConfigError
from roberta_dist.export.card import run_facts
from roberta_dist.export.huggingface import export_weights
from roberta_dist.runtime.metrics import rows_backwards
from roberta_dist.stream.corpora import first_corpus


def held_out_loss(metrics: Path, step: int) -> float | None:
    """The last `eval_loss` in metrics.jsonl up to `step`; None where none was measured."""
    for row in rows_backwards(metrics, '"eval_loss"'):
        if row["step"] <= step and row.get("eval_loss") is not None:
            return float(row["eval_loss"])
    return None


def _unigram_entropy(data: DataConfig) -> float | None:
    if len(data.locations) > 1:
        return None  # the held-out loss is over all of them
    try:
        return open_manifest(first_corpus(data).child("held_out")).unigram_entropy
    except ConfigError:  # prepared without a held-out split
        return None


def export_checkpoint(config: ExportConfig) -> int:
    """Export `step`, or the newest complete checkpoint, of `run_dir`.

    Returns:
        Exit code 0.

    Raises:
        ConfigError: no such run, checkpoint or corpus; `output` holds something else.
        DataFault: see `export_weights`.
    """
    run_dir = Path(config.run_dir)
    run = load_yaml(PretrainConfig, run_dir / "config.yaml")
    checkpoint = find_checkpoint(run_dir, config.step)
    opened = open_checkpoint(checkpoint)
    corpus = first_corpus(run.data)
    manifest = open_manifest(corpus.child("train"))
    output = Path(config.output) if config.output is not None else run_dir / "export"
    loss = held_out_loss(run_dir / "metrics.jsonl", opened.step)
    difference = export_weights(
        load_weights(checkpoint),
        run.model,
        manifest,
        local_tokenizer(corpus, manifest.tokenizer_sha256),
        output,
        run_facts(run, opened.train_state, loss, _unigram_entropy(run.data)),
        config.tolerance,
    )
    print(
        f"exported step {opened.step} to {output}: transformers' logits differ from ours by at most "
        f"{difference:.2e} (tolerance {config.tolerance:.0e})"
    )
    return 0
