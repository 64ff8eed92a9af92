"""`roberta-dist prepare`: text in; tokenizer, shards and manifests out.

Five phases, each restartable: parts of the source are read, split and spooled to disk; the
tokenizer is trained or loaded; near duplicates are joined; every bucket of the spool becomes a
shard; the shards are checked and get one manifest a split. `prepare.json`, written last, marks the
corpus complete. Reading and encoding may be dealt to any number of tasks: the output is the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from roberta_dist.config.fields import Resume
from roberta_dist.config.load import flatten, resume_classes
from roberta_dist.config.prepare import Phase
from roberta_dist.config.roots import PrepareConfig
from roberta_dist.corpus.bpe import load_bpe
from roberta_dist.corpus.outcome import leave_alone
from roberta_dist.corpus.phases import encode, join, merge, read, train_tokenizer
from roberta_dist.corpus.sources import open_source
from roberta_dist.corpus.workfolder import begin, locked, task_lock
from roberta_dist.corpus.workplan import WorkPlan, make_plan

NOT_IDENTITY = {"corpus.workers"}
NEXT = {
    Phase.read: (
        "when every task of it is through: prepare.phase=tokenizer and prepare.phase=join, one "
        "command each"
    ),
    Phase.tokenizer: "prepare.phase=join if not done yet, then prepare.phase=encode",
    Phase.join: "prepare.phase=tokenizer if not done yet, then prepare.phase=encode",
    Phase.encode: "when every task of it is through: prepare.phase=merge, one command",
}
"""Phase → what to run after it."""


def prepare(config: PrepareConfig) -> int:
    """Write the corpus of `config` into `config.output`, or one task of it; a complete one is left
    alone.

    Returns:
        0.

    Raises:
        ConfigError: no documents, an empty split, `output` holds another corpus, or work of an
            earlier phase is missing.
        DataFault: a source file that cannot be read, or a damaged output.
        StorageError: the disk is full or `output` cannot be written.
    """
    output = Path(config.output)
    settings = identity_settings(config)
    source = open_source(config.corpus)
    if leave_alone(output, settings, source):
        return 0
    plan = make_plan(config, source, settings)
    if config.tokenizer.path is not None:
        load_bpe(Path(config.tokenizer.path))  # a bad path is said before anything is read
    alone = config.prepare.phase in (Phase.all, Phase.merge)
    with locked(output, exclusive=alone):
        if leave_alone(output, settings, source):  # completed since the first look
            return 0
        message = begin(output, plan.state, may_begin_anew=config.prepare.phase is Phase.all)
        if message:
            print(f"{output}: {message}")
        _run(plan)
    return 0


def identity_settings(config: PrepareConfig) -> dict[str, Any]:
    """`group.key` → value of all that decides the output, as JSON stores it."""
    classes = resume_classes(config)
    settings = {
        key: value
        for key, value in flatten(config).items()
        if classes[key] is Resume.identity and key not in NOT_IDENTITY
    }
    stored: dict[str, Any] = json.loads(json.dumps(settings))
    return stored


def _run(plan: WorkPlan) -> None:
    """Do the phase that is asked for."""
    wanted = plan.config.prepare
    if wanted.phase is Phase.all:
        for phase in (read, train_tokenizer, join, encode, merge):
            phase(plan)
        return
    with task_lock(plan.output, wanted.phase.value, wanted.task, wanted.tasks):
        match wanted.phase:
            case Phase.read:
                read(plan)
            case Phase.tokenizer:
                train_tokenizer(plan)
            case Phase.join:
                join(plan)
            case Phase.encode:
                encode(plan)
            case Phase.merge:
                merge(plan)
                return
    share = f", task {wanted.task} of {wanted.tasks}" if wanted.tasks > 1 else ""
    print(f"{plan.output}: prepare.phase={wanted.phase.value}{share} is complete")
    print(f"next, with the same settings: {NEXT[wanted.phase]}")
