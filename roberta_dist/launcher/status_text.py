"""How runs stand, for people and for programs: a page, a line of a table, a JSON object. All pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from roberta_dist.launcher.pace import step_s, time_left_s, tokens_per_s
from roberta_dist.launcher.run_files import RunFiles
from roberta_dist.launcher.scheduler import Job
from roberta_dist.launcher.standing import Standing, State
from roberta_dist.units import human_bytes, human_count, human_duration

LONGEST_LINE = 240
HEADER = ("run", "state", "step", "of", "loss", "held-out", "tokens/s", "left", "saved", "attempts", "")  # fmt: skip
NUMBERS = range(2, 10)
"""Columns that are written flush right."""


@dataclass(frozen=True)
class Report:
    """One run at one moment.

    Attributes:
        files: of the run folder.
        standing: how it stands.
        jobs: what the scheduler knows of its jobs.
        now: seconds since 1970.
    """

    files: RunFiles
    standing: Standing
    jobs: list[Job]
    now: float

    @property
    def speed(self) -> float | None:
        """Tokens a second; None unless it runs."""
        return tokens_per_s(self.files.rows) if self._moves else None

    @property
    def pace(self) -> float | None:
        """Seconds a step; None unless it runs."""
        return step_s(self.files.rows, self.files.first_step) if self._moves else None

    @property
    def left(self) -> float | None:
        """Seconds to the last step; None unless it runs."""
        rows, first = self.files.rows, self.files.first_step
        return time_left_s(rows, first, self.files.max_steps) if self._moves else None

    @property
    def _moves(self) -> bool:
        return self.standing.state in (State.running, State.stopping)


def as_json(report: Report) -> str:
    """One line; what is not known is null."""
    files, standing = report.files, report.standing
    launch = files.launches[-1] if files.launches else None
    step, saved_at = files.checkpoint or (None, None)
    value: dict[str, Any] = {
        "run_dir": str(files.root),
        "kind": standing.kind,
        "state": standing.state.value,
        "detail": standing.detail,
        "host": launch.host if launch else None,
        "job_ids": list(files.roles),
        "attempt": files.attempt.name if files.attempt else None,
        "attempts": len(files.attempts),
        "restarts": files.restarts,
        "exit_code": files.exit_code,
        "world_size": files.world_size,
        "step": files.last.get("step"),
        "max_steps": files.max_steps,
        "epoch": files.last.get("epoch"),
        "loss": files.last.get("loss"),
        "eval_loss": files.held_out["eval_loss"] if files.held_out else None,
        "eval_step": files.held_out["step"] if files.held_out else None,
        "tokens_per_s": report.speed,
        "step_s": report.pace,
        "seconds_left": report.left,
        "written_s_ago": _age(files.written, report.now),
        "checkpoint_step": step,
        "checkpoint_s_ago": _age(saved_at, report.now),
        "save_failures": files.last.get("save_failures"),
        "skipped": files.last.get("skipped"),
        "quarantined_packs": files.last.get("quarantined_packs"),
        "damaged_checkpoints": files.damaged,
        "disk_free_bytes": files.disk_free,
        "logs": str(files.attempt) if files.attempt else None,
        "complaints": files.complaints,
    }
    return json.dumps(value)


def as_page(report: Report) -> str:
    """A few lines for people."""
    files, standing = report.files, report.standing
    head = f"{printable(str(files.root))}: {standing.state.value} ({standing.kind})"
    rows = [("", f"{head}: {standing.detail}" if standing.detail else head)]
    if files.last:
        rows += [("step", _progress(report)), ("loss", _losses(files))]
    if report.speed is not None and report.pace is not None:
        rows.append(("speed", _speed(report)))
    if files.attempt:
        ranks = f", {files.world_size} rank(s)" if files.world_size else ""
        count = f"{len(files.attempts)} so far, {files.restarts} restart(s) since the launch"
        rows.append(("attempt", f"{files.attempt.name} ({count}){ranks}"))
    if files.checkpoint:
        step, time = files.checkpoint
        rows.append(("saved", f"step {step:,}, {human_duration(report.now - time)} ago"))
    if trouble := _trouble(files):
        rows.append(("trouble", trouble))
    rows.append(("disk", f"{human_bytes(files.disk_free)} free"))
    if files.attempt:
        rows.append(("logs", printable(str(files.attempt))))
    rows += [("told", printable(line)[:LONGEST_LINE]) for line in files.complaints]
    return "\n".join(f"  {name:<9}{text}" if name else text for name, text in rows)


def as_table(reports: Sequence[Report]) -> str:
    """A line a run, columns aligned."""
    lines = [HEADER, *(_cells(report) for report in reports)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in NUMBERS else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def printable(text: str) -> str:
    """Text that moves no cursor and starts no line: `a\\nb` for a name with a newline in it."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _cells(report: Report) -> tuple[str, ...]:
    files, standing = report.files, report.standing
    held_out = files.held_out["eval_loss"] if files.held_out else None
    return (
        printable(str(files.root)),
        standing.state.value,
        _or_dash(files.last.get("step"), "{:,}"),
        _or_dash(files.max_steps, "{:,}"),
        _or_dash(files.last.get("loss"), "{:.3f}"),
        _or_dash(held_out, "{:.3f}"),
        human_count(report.speed) if report.speed is not None else "-",
        human_duration(report.left) if report.left is not None else "-",
        _or_dash(files.checkpoint and files.checkpoint[0], "{:,}"),
        str(len(files.attempts)),
        "" if standing.state.goes_on else standing.detail,
    )


def _progress(report: Report) -> str:
    files = report.files
    step, of = files.last["step"], files.max_steps
    share = f" of {of:,} ({step / of:.1%})" if of else ""
    epoch = f", epoch {files.last['epoch']:.2f}" if files.last.get("epoch") is not None else ""
    age = _age(files.written, report.now)
    written = f", last written {human_duration(age)} ago" if age is not None else ""
    return f"{step:,}{share}{epoch}{written}"


def _losses(files: RunFiles) -> str:
    text = _or_dash(files.last.get("loss"), "{:.4f}")
    if files.held_out:
        text += f", held-out {_or_dash(files.held_out['eval_loss'], '{:.4f}')} at step {files.held_out['step']:,}"
    return text


def _speed(report: Report) -> str:
    left = f", about {human_duration(report.left)} left" if report.left is not None else ""
    pace = f"{report.pace:.3g} s a step with evaluations and saves"
    return f"{human_count(report.speed or 0)} tokens/s, {pace}{left}"


def _trouble(files: RunFiles) -> str:
    counts = {
        "save(s) of this attempt failed": files.last.get("save_failures"),
        "batch(es) left out": files.last.get("skipped"),
        "damaged pack(s) left out": files.last.get("quarantined_packs"),
    }
    words = [f"{count:g} {what}" for what, count in counts.items() if count]
    return ", ".join([*words, *(f"checkpoints/{name} set aside" for name in files.damaged)])


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _age(time: float | None, now: float) -> float | None:
    return None if time is None else max(0.0, now - time)
