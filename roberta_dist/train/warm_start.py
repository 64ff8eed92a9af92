"""A new run that begins with the weights of another (continued pretraining)."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from roberta_dist.checkpoint.reader import find_checkpoint, open_checkpoint
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.engine.engine import TrainEngine
from roberta_dist.errors import ConfigError
from roberta_dist.runtime.dist import on_main
from roberta_dist.runtime.rundir import step_folders
from roberta_dist.runtime.world import World
from roberta_dist.stream.open import Stream
from roberta_dist.train.newest import fault_of
from roberta_dist.train.resume import ResumePoint

LOGGER = logging.getLogger(__name__)


def source_of(init: str) -> Path:
    """The checkpoint that `init` names.

    Raises:
        ConfigError: neither a checkpoint nor a run folder with a complete one.
    """
    folder = Path(init).expanduser()
    if folder in step_folders(folder.parent):
        return folder
    return find_checkpoint(folder, None)


def warm_start(
    config: PretrainConfig, engine: TrainEngine, stream: Stream, world: World, resume: ResumePoint
) -> ResumePoint:
    """Fill the engine from `config.init`; every rank calls this.

    Step, rows, schedule and skips begin anew; with `init_optimizer` the count of updates, on which the
    moments' bias correction depends, does not.

    Raises:
        ConfigError: there is no such checkpoint, or it was trained with another tokenizer.
        DataFault: it is damaged, or of another model.
    """
    init = config.init
    assert init is not None
    folder = on_main(lambda: source_of(init))
    fault = fault_of(folder, world)
    if fault is not None:
        raise fault
    checkpoint = on_main(lambda: open_checkpoint(folder))
    theirs = checkpoint.train_state["data"].get("tokenizer_sha256")
    ours = stream.manifest.tokenizer_sha256
    if theirs != ours:
        raise ConfigError(
            f"init={init}: its tokenizer ({theirs}) is not the corpus's ({ours})",
            "prepare the corpus with the tokenizer of that run (tokenizer.path=CORPUS/tokenizer)",
        )
    engine.load(checkpoint, config.init_optimizer)
    LOGGER.info(
        "begins with the weights%s of %s",
        *(" and moments" if config.init_optimizer else "", folder),
    )
    updates = int(checkpoint.train_state["optimizer_step"]) if config.init_optimizer else 0
    return replace(resume, state=replace(resume.state, optimizer_step=updates))
