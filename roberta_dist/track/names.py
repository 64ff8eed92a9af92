"""Names of the metrics: what each means, its unit, and which must not depend on a kill.

A step has one line of training metrics; an evaluation adds a second line of the same step with the
eval_* columns. A number that is not finite is written as null, so that every line is valid JSON.
A column that a run has no use for (next-sentence figures without pairs) is left out.
"""

from __future__ import annotations

METRICS: dict[str, str] = {
    "step": "batches consumed so far",
    "time": "when the line was written, seconds since 1970",
    "next_row": "first global row of the next batch",
    "loss": "cross-entropy per masked token of the global batch, nats",
    "masked_tokens": "predicted tokens of the global batch",
    "nsp_loss": "next-sentence cross-entropy per pair of the global batch, nats",
    "nsp_accuracy": "share of the global batch's pairs told right",
    "global_batch_size": "rows of the global batch",
    "sequence_length": "longest row the step may have, tokens",
    "lr": "learning rate of the update",
    "grad_norm": "norm of the global gradient before clipping",
    "skipped": "batches whose update was not applied so far",
    "eval_loss": "held-out cross-entropy per masked token, nats",
    "eval_perplexity": "exp(eval_loss)",
    "eval_masked_tokens": "predicted tokens of the held-out rows",
    "eval_nsp_loss": "held-out next-sentence cross-entropy per pair, nats",
    "eval_nsp_accuracy": "share of the held-out pairs told right",
    "quarantined_packs": "damaged packs left out so far",
    "save_failures": "checkpoints that could not be written so far",
    "epoch": "times the corpus was read",
    "tokens_per_s": "tokens of all ranks a second",
    "mfu": "share of the matrix-product rate measured at the start",
    "step_time_s": "seconds of the step",
    "data_wait_s": "seconds spent waiting for the batch",
    "compute_s": "seconds of forward, backward and reduction",
    "optimizer_s": "seconds of the update",
    "memory_mib": "peak memory of rank 0, MiB",
    "profiled": "1 in a step that a profiler slowed down",
}

DETERMINISTIC = frozenset(
    {
        "step",
        "next_row",
        "loss",
        "masked_tokens",
        "nsp_loss",
        "nsp_accuracy",
        "global_batch_size",
        "sequence_length",
        "lr",
        "grad_norm",
        "skipped",
        "eval_loss",
        "eval_perplexity",
        "eval_masked_tokens",
        "eval_nsp_loss",
        "eval_nsp_accuracy",
        "quarantined_packs",
    }
)
"""Columns that are bit for bit those of an uninterrupted run (DESIGN §1, Resume)."""

CORPUS_LOSS = "eval_loss/"
"""What the name of a corpus follows: held-out cross-entropy per masked token of it alone, nats."""

LAYER_GRAD_NORM = "layer_grad_norm/"
LAYER_UPDATE_RATIO = "layer_update_ratio/"
LAYER_TRUST_RATIO = "layer_trust_ratio/"
LAYER_METRICS: dict[str, str] = {
    LAYER_GRAD_NORM: "norm of the layer's gradient before clipping",
    LAYER_UPDATE_RATIO: "norm of the layer's update over that of its weights before it",
    LAYER_TRUST_RATIO: "mean of LAMB's trust ratios of the layer's tensors, of those that have one",
}
"""What the name of a layer follows (`embeddings`, `layers.0` …, `head`), every
`track.layers_every` steps and where the update was applied."""


def is_deterministic(name: str) -> bool:
    """True if the column must not depend on when a run was killed."""
    return name in DETERMINISTIC or name.startswith((CORPUS_LOSS, *LAYER_METRICS))
