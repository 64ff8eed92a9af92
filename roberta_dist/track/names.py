"""Names of the metrics: what each means, its unit, and which must not depend on a kill.

A step has one line of training metrics; an evaluation adds a second line of the same step with the
eval_* columns. A number that is not finite is written as null, so that every line is valid JSON.
"""

from __future__ import annotations

METRICS: dict[str, str] = {
    "step": "batches consumed so far",
    "next_row": "first global row of the next batch",
    "loss": "cross-entropy per masked token of the global batch, nats",
    "masked_tokens": "predicted tokens of the global batch",
    "lr": "learning rate of the update",
    "grad_norm": "norm of the global gradient before clipping",
    "skipped": "batches whose update was not applied so far",
    "eval_loss": "held-out cross-entropy per masked token, nats",
    "eval_perplexity": "exp(eval_loss)",
    "eval_masked_tokens": "predicted tokens of the held-out rows",
    "save_failures": "checkpoints that could not be written so far",
    "epoch": "times the corpus was read",
    "tokens_per_s": "tokens of all ranks a second",
    "mfu": "share of the matrix-product rate measured at the start",
    "step_time_s": "seconds of the step",
    "data_wait_s": "seconds spent waiting for the batch",
    "compute_s": "seconds of forward, backward and reduction",
    "optimizer_s": "seconds of the update",
    "memory_mib": "peak memory of rank 0, MiB",
}

DETERMINISTIC = frozenset(
    {
        "step",
        "next_row",
        "loss",
        "masked_tokens",
        "lr",
        "grad_norm",
        "skipped",
        "eval_loss",
        "eval_perplexity",
        "eval_masked_tokens",
    }
)
"""Columns that are bit for bit those of an uninterrupted run (DESIGN §1, Resume)."""
