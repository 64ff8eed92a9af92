"""Everything a run is made of, constructed in dependency order on one screen."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from roberta_dist.checkpoint.reader import Checkpoint
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.config.train import Offload, Precision
from roberta_dist.engine.engine import TrainEngine
from roberta_dist.engine.setup import init_world
from roberta_dist.model.encoder import RobertaForPretraining
from roberta_dist.model.init import init_weights
from roberta_dist.optim.build import build_optimizer
from roberta_dist.optim.loss_scale import LossScale
from roberta_dist.runtime.dist import on_all, on_main
from roberta_dist.runtime.laps import Laps
from roberta_dist.runtime.rundir import RunPaths
from roberta_dist.runtime.world import World
from roberta_dist.stream.held_out import HeldOut, open_held_out
from roberta_dist.stream.loader import most_micro_steps
from roberta_dist.stream.open import Stream, check_lanes, open_stream
from roberta_dist.stream.packs import check_disjoint, check_shards
from roberta_dist.train.feed import Stopped
from roberta_dist.train.find_micro_batch import Parts, find_micro_batch
from roberta_dist.train.newest import newest_whole, refuse_anew
from roberta_dist.train.resume import ResumePoint, check_resume
from roberta_dist.train.state import TrainState
from roberta_dist.train.warm_start import warm_start

LOGGER = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """The parts of one run on one rank.

    Attributes:
        config: as asked for: it is what the run folder keeps.
        micro_batch_size: what `train.micro_batch_size` came to.
    """

    config: PretrainConfig
    world: World
    device: torch.device
    stream: Stream
    held_out: tuple[HeldOut, ...]
    engine: TrainEngine
    micro_batch_size: int
    resume: ResumePoint


def build_run(
    config: PretrainConfig, world: World, stop_requested: Callable[[], bool] = lambda: False
) -> Run:
    """World → data → resume point → model → optimizer → engine → weights.

    Args:
        config: as asked for.
        world: of this process.
        stop_requested: asked between the parts, which may take minutes each.

    Raises:
        Stopped: on every rank when one was asked to stop.
        ConfigError: the corpus, or a difference to the checkpoint, does not allow the run.
        DataFault: a shard or the checkpoint is damaged.
    """
    laps = Laps()
    laps.mark("imports")
    device = init_world(world, config.train.timeout_s)
    laps.mark("world")
    if config.train.deterministic:
        torch.use_deterministic_algorithms(True)
    checkpoint = newest_whole(RunPaths(Path(config.run_dir)).checkpoints, config.checkpoint, world)
    recorded = checkpoint.train_state["data"] if checkpoint else None
    stream = _on_main_first(
        lambda progress: open_stream(
            config.data,
            config.masking,
            config.train.seed,
            config.train.global_batch_size,
            progress,
            recorded,
        )
    )
    held_out: tuple[HeldOut, ...] = ()
    if config.evaluate.every_steps:
        held_out = _on_main_first(
            lambda _: open_held_out(config.data, config.masking, config.evaluate)
        )
    _go_on(stop_requested)
    _check_shards(stream, held_out, world)
    resume = on_main(lambda: _find_resume_point(config, checkpoint, stream, world))
    laps.mark("data")
    _go_on(stop_requested)
    model = RobertaForPretraining(
        config.model,
        config.kernels,
        stream.manifest.vocab_size,
        next_sentence=config.data.format.is_pair,
    )
    init_weights(model, config.train.seed)
    update_on = torch.device("cpu") if config.engine.offload is Offload.cpu else device
    optimizer = build_optimizer(model, config.optim, update_on)
    # DeepSpeed asks before `auto` has found a size; a step may have fewer micro-batches than it is told.
    steps = most_micro_steps(stream, world, config.train.least_micro_batch_size)
    engine = TrainEngine(model, optimizer, config, world, device, steps)
    size = config.train.micro_batch_size
    if isinstance(size, str):
        size = find_micro_batch(Parts(config, stream, engine))
        _go_on(stop_requested)
    if checkpoint is not None:
        engine.load(checkpoint)
    elif config.init is not None:
        resume = warm_start(config, engine, stream, world, resume)
    laps.mark("engine")
    LOGGER.info("start-up: %s", laps)
    return Run(config, world, device, stream, held_out, engine, size, resume)


def _go_on(stop_requested: Callable[[], bool]) -> None:
    def ask() -> None:
        if stop_requested():
            raise Stopped("asked to stop while starting")

    on_all(ask)


def _on_main_first(open_part: Callable[[bool], T]) -> T:
    """Rank 0 opens first, counting what is not counted yet; the others find its result kept."""
    on_main(lambda: (open_part(True), None)[1])
    return on_all(lambda: open_part(False))


def _check_shards(stream: Stream, held_out: tuple[HeldOut, ...], world: World) -> None:
    """Every shard is there, each looked at by one rank; what one finds stops all."""

    def check() -> None:
        for corpus in stream.corpora:
            check_shards(corpus.manifest, world.rank, world.world_size)
        for split in held_out:
            for corpus in stream.corpora:
                check_disjoint(corpus.manifest, split.manifest)

    on_all(check)


def _find_resume_point(
    config: PretrainConfig, checkpoint: Checkpoint | None, stream: Stream, world: World
) -> ResumePoint:
    if checkpoint is None:
        refuse_anew(RunPaths(Path(config.run_dir)))
        check_lanes(stream, world)
        fp16 = config.engine.precision is Precision.fp16
        scale = LossScale(config.engine.loss_scale) if fp16 else LossScale()
        return ResumePoint(TrainState(loss_scale=scale), [])
    return check_resume(
        checkpoint, config, stream.fingerprint(int(checkpoint.train_state["next_row"]))
    )
