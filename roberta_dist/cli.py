"""`roberta-dist VERB key=value …`: each verb is a Hydra application with its own root yaml.

What a verb needs is imported when it is asked for: `launch`, `report` and `--help` start no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from roberta_dist.config.load import run_sweep, run_verb
from roberta_dist.config.roots import VERB_CONFIGS, LaunchConfig
from roberta_dist.config.watch import Upload
from roberta_dist.errors import INTERRUPTED
from roberta_dist.runtime.leave import end_process

UNKNOWN_VERB = 2
MULTIRUN = {"-m", "--multirun"}

VERBS = {
    "prepare": "text → tokenizer, token packs, webdataset shards, held-out split",
    "launch": "start or resume a run: here, by ssh or as a job (cluster=local, hostfile, slurm)",
    "pretrain": "the worker itself, in this process (world from RANK and WORLD_SIZE, or 1)",
    "evaluate": "held-out loss of a checkpoint (run_dir=) or of an exported folder (model_path=)",
    "export": "checkpoint → Hugging Face folder, compared with transformers before it is accepted",
    "predict": "task=fill_mask: what an exported model puts in place of <mask>",
    "status": "how a run stands (run_dir=), or a table over many (run_dirs=[runs/*])",
    "logs": "the log of a rank; follow=true goes on with what is written",
    "stop": "a run saves and ends, whichever way it was started",
    "report": "a run folder's metrics as a picture, and as one W&B run (upload=wandb)",
    "doctor": "what this machine has and what a run here would use",
}
"""Verb and what it does, in the order of the walk."""

USAGE = "\n".join(
    [
        "usage: roberta-dist VERB key=value …",
        "",
        *(f"  {verb:<10}{meaning}" for verb, meaning in VERBS.items()),
        "",
        "roberta-dist VERB --cfg job   every option with its value",
        "roberta-dist VERB --help      configuration groups and recipes",
        "roberta-dist launch --multirun key=a,b   a run for each value, on SLURM as a job array",
        "exit codes: 0 success (a run: look for DONE or REQUEUE), 2 configuration, 3 data fault,",
        "            4 non-finite numbers, 5 hang, 6 launch failure, 130 interrupted",
    ]
)


def _run(verb: str, config: Any) -> int:
    """Call the verb's function; nothing of the other verbs is imported."""
    match verb:
        case "prepare":
            from roberta_dist.corpus.prepare import prepare
            from roberta_dist.runtime.parent import exit_with_parent

            exit_with_parent()  # which is `launch prepare_first=…`, or nobody
            return prepare(config)
        case "launch":
            from roberta_dist.launcher.launch import launch

            return launch(config)
        case "pretrain":
            from roberta_dist.train.run import pretrain

            return pretrain(config)
        case "evaluate":
            from roberta_dist.evaluate.run import evaluate

            return evaluate(config)
        case "export":
            from roberta_dist.export.run import export_checkpoint

            return export_checkpoint(config)
        case "predict":
            from roberta_dist.predict.fill_mask import predict

            return predict(config)
        case "status":
            from roberta_dist.launcher.status import status

            return status(config)
        case "logs":
            from roberta_dist.launcher.logs import logs

            return logs(config)
        case "stop":
            from roberta_dist.launcher.stop import stop

            return stop(config)
        case "report":
            from roberta_dist.report.run import report

            code = report(config)
            if config.upload is not Upload.none:
                from roberta_dist.track.wandb_upload import upload_run

                upload_run(config)
            return code
        case "doctor":
            from roberta_dist.doctor import doctor

            return doctor(config)
    raise AssertionError(verb)


def _launch_sweep(words: list[str]) -> int:
    from roberta_dist.launcher.sweep import launch_sweep

    return run_sweep("launch", LaunchConfig, launch_sweep, words)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else UNKNOWN_VERB
    verb, *overrides = arguments
    if verb not in VERBS:
        print(f"roberta-dist {verb}: not a verb; one of {', '.join(VERBS)}", file=sys.stderr)
        return UNKNOWN_VERB
    try:
        flags = {word for word in overrides if word.startswith("-")}
        if verb == "launch" and flags and flags <= MULTIRUN:  # others, such as --help, are Hydra's
            return _launch_sweep([word for word in overrides if word not in MULTIRUN])
        return run_verb(verb, VERB_CONFIGS[verb], lambda config: _run(verb, config), overrides)
    except KeyboardInterrupt:
        print(f"roberta-dist {verb}: interrupted", file=sys.stderr)
        return INTERRUPTED


def console() -> NoReturn:
    """The `roberta-dist` command."""
    end_process(main())


if __name__ == "__main__":
    console()
