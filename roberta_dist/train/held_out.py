"""The held-out loss of a run, corpus by corpus."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from roberta_dist.stream.measure import Sums
from roberta_dist.track.names import CORPUS_LOSS
from roberta_dist.train.build import Run
from roberta_dist.train.feed import in_step

LOGGER = logging.getLogger(__name__)


def measure_held_out(
    run: Run, step: int, stop_requested: Callable[[], bool]
) -> tuple[float, dict[str, float]]:
    """Losses over all held-out splits of a run; every rank calls this.

    Returns:
        the loss over all of them, nats a masked token, and what is logged.

    Raises:
        DataFault: on every rank when one could not read its part.
        Stopped: on every rank when one was asked to stop.
    """
    metrics: dict[str, float] = {}
    total = Sums()
    for corpus in run.held_out:
        batches = in_step(corpus.batches(run.world), stop_requested)
        sums = run.engine.held_out_sums(batches)
        total += sums
        if len(run.held_out) > 1:
            metrics[CORPUS_LOSS + corpus.name] = sums.loss
        LOGGER.info(
            "step %d: held-out loss of %s %.4f nats, perplexity %.1f (unigram entropy %.4f)",
            *(step, corpus.name, sums.loss, math.exp(min(sums.loss, 700.0))),
            corpus.manifest.unigram_entropy,
        )
    metrics |= {
        "eval_loss": total.loss,
        "eval_perplexity": math.exp(min(total.loss, 700.0)),
        "eval_masked_tokens": float(total.masked),
    }
    if total.nsp_loss is not None and total.nsp_accuracy is not None:
        metrics |= {"eval_nsp_loss": total.nsp_loss, "eval_nsp_accuracy": total.nsp_accuracy}
    return total.loss, metrics
