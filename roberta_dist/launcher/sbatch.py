"""The job script of SLURM, as text: pure, so that a golden file can hold it.

The text is launch/train.sbatch with its `#@` lines replaced. Whatever comes from the configuration is
quoted for bash (`shlex.quote`) or, in `#SBATCH` lines, for sbatch's own reader; prologue lines alone
are shell and stay as they are.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from roberta_dist.config.cluster import ClusterConfig
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.config.slurm import CONTROL, Container, Transport
from roberta_dist.errors import ConfigError
from roberta_dist.launcher.fabric import Setting, fabric_settings, interface_settings
from roberta_dist.launcher.steps import Job, preflight_step, workers_step
from roberta_dist.runtime.world import TRANSPORT_VARIABLE

PLAIN = re.compile(r"[\w./:=,@+%\[\]-]+", re.ASCII)


def render(config: PretrainConfig, job: Job, template: str) -> str:
    """The job script.

    Args:
        config: the run, with absolute paths.
        job: what the launcher found out.
        template: text of launch/train.sbatch.

    Raises:
        ConfigError: the run folder's path cannot stand in a job script.
    """
    slurm = config.cluster.slurm
    parts = {
        "directives": directives(config, job),
        "settings": _settings(config, job),
        "environment": _environment(config.cluster, job),
        "prologue": slurm.prologue,
        "preflight": preflight_step(config, job),
        "workers": workers_step(config, job),
    }
    conditions = {
        "prologue": bool(slurm.prologue),
        "preflight": slurm.preflight,
        "dry_run": config.train.dry_run,
        "deepspeed": slurm.transport is Transport.deepspeed,
    }
    lines = _filled(template.splitlines(), parts, conditions)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines) + "\n")


def _filled(
    template: list[str], parts: Mapping[str, list[str]], conditions: Mapping[str, bool]
) -> Iterator[str]:
    keep = True
    for line in template:
        mark, _, name = line.strip().partition(" ")
        if mark != "#@":
            if keep:
                yield line
        elif name == "end":
            keep = True
        elif name.startswith("if "):
            keep = conditions[name[3:]]
        elif keep:
            indent = line[: len(line) - len(line.lstrip())]
            yield from (indent + text for text in parts[name])


def directives(config: PretrainConfig, job: Job, log_name: str = "%j") -> list[str]:
    """The `#SBATCH` lines.

    Args:
        config: the run.
        job: what the launcher found out.
        log_name: in SLURM's words, without `.out`; `%A_%a` for the parts of an array.
    """
    cluster, slurm = config.cluster, config.cluster.slurm
    log = check_path(config.run_dir).replace("%", "%%") + f"/slurm/{log_name}.out"
    gpus = f"{slurm.gpu_type}:{job.gpus}" if slurm.gpu_type else str(job.gpus)
    options = {
        "job-name": slurm.job_name or CONTROL.sub("_", Path(config.run_dir).name),
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "reservation": slurm.reservation,
        "constraint": slurm.constraint,
        "exclude": ",".join(slurm.exclude) or None,
        "nodes": cluster.nodes + slurm.spare_nodes,
        "ntasks-per-node": job.workers,
        "gpus-per-node": gpus if job.gpus else None,
        "cpus-per-task": slurm.cpus_per_task or None,
        "mem": slurm.memory,
        "time": slurm.time,
        "signal": f"B:USR1@{slurm.signal_lead_s}" if slurm.signal_lead_s else None,
        "open-mode": "append",
        "output": log,
        "mail-user": slurm.mail_user,
        "mail-type": "END,FAIL" if slurm.mail_user else None,
    }
    flags = ["--exclusive"] if slurm.exclusive else []
    flags.append("--requeue" if slurm.requeues else "--no-requeue")
    words = [f"--{name}={_quote_directive(str(v))}" for name, v in options.items() if v is not None]
    for extra in slurm.extra:
        name, given, value = extra.partition("=")
        words.append(f"{name}={_quote_directive(value)}" if given else name)
    return [f"#SBATCH {word}" for word in [*words, *flags]]


def check_path(path: str) -> str:
    """`path`, if sbatch can be told to write there.

    Raises:
        ConfigError: it holds a control character, or a backslash, which SLURM reads as its own.
    """
    if CONTROL.search(path) or "\\" in path:
        raise ConfigError(
            f"run_dir={path!r}: a job's log cannot lie there (a line break or a backslash)",
            "choose another run_dir",
        )
    return path


def _quote_directive(value: str) -> str:
    """For sbatch's reader of `#SBATCH` lines, which knows quotes, backslashes and `#`."""
    if PLAIN.fullmatch(value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _settings(config: PretrainConfig, job: Job) -> list[str]:
    cluster = config.cluster
    values = {
        "run": config.run_dir,
        "config": str(job.config),
        "nodes": cluster.nodes,
        "workers": job.workers,
        "max_steps": config.schedule.max_steps,
        "requeues": 0 if config.train.dry_run else cluster.slurm.requeues,
        "master_port": cluster.master_port or "",
        "excluded": ",".join(cluster.slurm.exclude),
    }
    return [f"{name}={shlex.quote(str(v)) if v != '' else ''}" for name, v in values.items()]


def _environment(cluster: ClusterConfig, job: Job) -> list[str]:
    threads = cluster.threads_per_worker or cluster.slurm.cpus_per_task
    shared = f"$((SLURM_CPUS_ON_NODE > {job.workers} ? SLURM_CPUS_ON_NODE / {job.workers} : 1))"
    settings = [
        Setting("PYTHONFAULTHANDLER", "1", ""),
        *fabric_settings(cluster.fabric),
        *interface_settings(cluster.interface),
    ]
    if cluster.slurm.transport is Transport.srun:
        settings.append(Setting(TRANSPORT_VARIABLE, "srun", "ranks are SLURM's tasks"))
    if not job.gpus:
        settings.append(Setting("DS_ACCELERATOR", "cpu", "no GPU is asked for"))
    if job.extensions is not None and cluster.slurm.container is Container.none:
        settings.append(Setting("TORCH_EXTENSIONS_DIR", str(job.extensions), ""))
    settings += [
        Setting(name, value, "cluster.environment")
        for name, value in (cluster.environment or {}).items()
    ]
    lines = [f"export OMP_NUM_THREADS={threads or shared}"]
    if Path(job.python).is_absolute() and cluster.slurm.container is Container.none:
        folder = shlex.quote(str(Path(job.python).parent))
        lines.append(f'export PATH={folder}:"$PATH" # one python, and one ninja')
    for setting in settings:
        comment = f" # {setting.reason}" if setting.reason else ""
        lines.append(f"export {setting.name}={shlex.quote(setting.value)}{comment}")
    return lines
