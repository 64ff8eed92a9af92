"""What `status` prints: a page, a table, JSON; and which folders it takes for runs."""

from __future__ import annotations

import json

import pytest
from run_folders import NOW, Folder

from roberta_dist.cli import main
from roberta_dist.config.operate import StatusConfig
from roberta_dist.errors import ConfigError
from roberta_dist.launcher.run_files import read_run_files
from roberta_dist.launcher.standing import Standing, State
from roberta_dist.launcher.status import find_runs, look, status
from roberta_dist.launcher.status_text import Report, as_json, as_page, as_table, printable

pytestmark = pytest.mark.unit
HOSTILE = """$(touch pwned) 'a" `b`\n[x]*;\x1b[31m"""


@pytest.fixture
def run(tmp_path):
    folder = Folder(tmp_path / "run").config(1000).launched()
    log = "2026-11-27 08:36:02,626 WARNING disk \x1b[2J full\n"
    return folder.attempt(log=log).metrics(100, ago=3).checkpoint(80, ago=42)


def report(run, state=State.running, detail="launcher 12"):
    return Report(read_run_files(run.paths.root), Standing(state, detail, "local"), [], NOW)


def test_page(run):
    (run.paths.checkpoints / "damaged_step_00000060").mkdir()
    page = as_page(report(run)).replace(str(run.paths.root), "RUN")
    lines = page.splitlines()
    assert lines[:6] == [
        "RUN: running (local): launcher 12",
        "  step     100 of 1,000 (10.0%), epoch 0.50, last written 3.0s ago",
        "  loss     4.0000, held-out 4.5000 at step 100",
        "  speed    1k tokens/s, 2 s a step with evaluations and saves, about 30m00s left",
        "  attempt  attempt_000 (1 so far, 0 restart(s) since the launch)",
        "  saved    step 80, 42.0s ago",
    ]
    assert (
        lines[6] == "  trouble  1 batch(es) left out, checkpoints/damaged_step_00000060 set aside"
    )
    assert lines[8] == "  logs     RUN/logs/attempt_000"
    assert lines[9] == r"  told     2026-11-27 08:36:02,626 WARNING disk \x1b[2J full"


def test_a_run_that_does_not_run_has_no_speed(run):
    stopped = report(run, State.stopped, "on request at step 100")
    assert "tokens/s" not in as_page(stopped) and stopped.left is None
    assert as_table([stopped]).splitlines()[1].split()[-5:] == [
        "on",
        "request",
        "at",
        "step",
        "100",
    ]


def test_json(run):
    value = json.loads(as_json(report(run)))
    assert value["state"] == "running" and value["step"] == 100 and value["max_steps"] == 1000
    assert value["seconds_left"] == pytest.approx(1800) and value["eval_loss"] == 4.5
    assert value["checkpoint_step"] == 80 and value["job_ids"] == [] and value["skipped"] == 1
    empty = json.loads(
        as_json(Report(read_run_files(run.paths.root), report(run).standing, [], NOW))
    )
    assert empty.keys() == value.keys()


def test_table(run, tmp_path):
    other = Folder(tmp_path / "a very long name of a run").config()
    reports = [report(run), Report(read_run_files(other.paths.root), Standing(State.not_started, "", "direct"), [], NOW)]  # fmt: skip
    head, first, second = as_table(reports).splitlines()
    assert first.index("running") == second.index("not started") == head.index("state")
    for name in ("step", "held-out", "left"):  # numbers end below the end of their heading
        end = head.index(f" {name} ") + 1 + len(name)
        assert first[end - 1] != " " and first[end : end + 2] == "  "
        assert second[end - 1] == "-"


def test_runs_are_found_by_name_and_pattern(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no run").mkdir()
    (tmp_path / "file").touch()
    Folder(tmp_path / "[b]*").config()
    runs, others = find_runs(["*"])
    assert [str(path) for path in runs] == ["[b]*", "run"] and others == 2
    assert [str(path) for path in find_runs(["[b]*", "run"])[0]] == ["[b]*", "run"]
    with pytest.raises(ConfigError, match=r"no run among 1 thing"):
        find_runs(["file", "nothing/*"])


def test_a_hostile_name_is_shown_and_does_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = Folder(tmp_path / HOSTILE).config().launched().attempt(log="x\n").metrics(3)
    assert status(StatusConfig(run_dirs=[f"{tmp_path}/*"])) == 0
    table = capsys.readouterr().out
    assert len(table.splitlines()) == 2 and r"`b`\n[x]*;\x1b[31m" in table
    assert status(StatusConfig(run_dir=str(folder.paths.root), json=True)) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["run_dir"] == str(folder.paths.root)
    assert status(StatusConfig(run_dir=str(folder.paths.root))) == 0
    page = capsys.readouterr().out
    assert page.splitlines()[0].startswith(str(tmp_path)) and "\x1b" not in page
    assert sorted(path.name for path in tmp_path.iterdir()) == [HOSTILE]
    assert printable("a\tb\nc é 漢") == r"a\tb\nc é 漢"


def test_the_verb(run, capsys):
    assert main(["status", f"run_dir={run.paths.root}"]) == 0
    assert "launcher 4999999 is gone without DONE or REQUEUE" in capsys.readouterr().out
    assert main(["status", f"run_dirs=[{run.paths.root.parent}/*]", "json=true"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "lost"
    assert main(["status"]) == 2 and "exactly one must be given" in capsys.readouterr().err
    assert main(["status", "run_dir=/nonexistent"]) == 2
    assert "no run there" in capsys.readouterr().err


def test_one_look_for_many(run, tmp_path):
    Folder(tmp_path / "other").config().sentinel("DONE", 100)
    reports = look([run.paths.root, tmp_path / "other"])
    assert [item.standing.state for item in reports] == [State.lost, State.done]
