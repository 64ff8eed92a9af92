"""`train.dry_run=true`: everything a run does, once, at full size, before it costs anything."""

from __future__ import annotations

import logging
import shutil
from functools import partial

from roberta_dist.checkpoint.reader import load_weights, open_checkpoint
from roberta_dist.config.load import to_yaml
from roberta_dist.corpus.tokenizer_folder import local_tokenizer
from roberta_dist.engine.guards import is_overflow
from roberta_dist.errors import NonFiniteError
from roberta_dist.export.huggingface import export_weights
from roberta_dist.optim.schedule import learning_rate, span_at
from roberta_dist.runtime.dist import barrier, on_all, on_main
from roberta_dist.runtime.rundir import RunPaths
from roberta_dist.stream.corpora import first_corpus
from roberta_dist.stream.loader import RankReader
from roberta_dist.stream.plan import Plan
from roberta_dist.train.build import Run
from roberta_dist.train.feed import in_step
from roberta_dist.train.speed import memory_mib
from roberta_dist.train.state import TrainState

LOGGER = logging.getLogger(__name__)


def dry_run(run: Run, paths: RunPaths) -> None:
    """One forward, backward, step, evaluation, save, load and export; the folder is left clean.

    Where a later phase has longer rows, a step of those comes first.

    Raises:
        RobertaDistError: whatever would have stopped the run.
    """
    folder = paths.root / "dry_run"
    config = run.config
    start = run.resume.state
    reader = RankReader(run.stream, run.world, run.micro_batch_size, start.quarantine)
    warmup = span_at(0, config.optim.lr, config.schedule).warmup
    lr = learning_rate(max(1, warmup), config.optim.lr, config.schedule)
    try:
        for row in _rows_to_try(run.stream.plan, start.next_row):
            batches = on_all(partial(reader.micro_batches, row))
            scale = start.loss_scale
            result = run.engine.train_step(batches, 0, lr, scale.scale)
            while is_overflow(result, scale):
                scale = scale.overflowed()
                result = run.engine.train_step(batches, 0, lr, scale.scale)
            if not result.applied:
                raise NonFiniteError(f"dry run: loss={result.loss} grad_norm={result.grad_norm}")
        for split in run.held_out:
            run.engine.held_out_sums(in_step(split.batches(run.world)))
        rows = run.stream.plan.batch_rows(0)
        state = TrainState(step=1, next_row=rows, optimizer_step=1)
        data_state = state.to_json(run.stream.fingerprint(rows))
        saved = run.engine.save(folder / "checkpoints", 1, data_state, to_yaml(config))
        run.engine.load(open_checkpoint(saved))
        tokenizer_sha256 = run.stream.manifest.tokenizer_sha256
        difference = on_main(
            lambda: export_weights(
                load_weights(saved),
                config.model,
                run.stream.manifest,
                local_tokenizer(first_corpus(config.data), tokenizer_sha256),
                folder / "export",
                {},
            )
        )
        LOGGER.info(
            "dry run: loss %.4f, %.1f s a step, %.0f MiB, export differs by %.1e: all parts work",
            result.loss,
            result.compute_s + result.optimizer_s,
            memory_mib(run.device),
            difference,
        )
        barrier()  # every rank has read what it needs
    finally:
        reader.close()
        if run.world.is_main:
            shutil.rmtree(folder, ignore_errors=True)


def _rows_to_try(plan: Plan, next_row: int) -> list[int]:
    """The next batch, after the first one with the longest rows still to come, if those are longer."""
    later = [segment for segment in plan.segments if segment.first_row > next_row]
    longest = max(later, key=lambda segment: segment.sequence_length, default=None)
    if longest is None or longest.sequence_length <= plan.at(next_row).sequence_length:
        return [next_row]
    return [longest.first_row, next_row]
