"""`report upload=wandb`: one W&B run of a run that was killed, rolled back and resumed, read back.

What is uploaded are the rows that two attempts left in metrics.jsonl, the first of which got beyond
where the second began and was cut off inside a line.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from unittest.mock import MagicMock

import pytest
from wandb_support import KEY, can_trace, read_wandb, run_watched

from roberta_dist import cli
from roberta_dist.config.load import flatten, to_yaml
from roberta_dist.config.roots import PretrainConfig, ReportConfig
from roberta_dist.errors import DataFault
from roberta_dist.track import wandb_upload
from roberta_dist.track.sinks import JsonlSink
from roberta_dist.track.truncate import truncate_metrics

pytestmark = pytest.mark.unit

LIVE_ID = "theattempts1"
PASSWORD = "hunter2-of-the-store"
UPLOAD = """
import os

from roberta_dist import cli

os.environ["WANDB_RESUME"] = "allow"  # as a shell may have it for the training

assert cli.main(["report", f"run_dir={sys.argv[1]}", "upload=wandb"]) == 0
assert "torch" not in sys.modules
"""


def attempt(path, steps, lr):
    """Log `steps` as training does, with an evaluation every fourth and a loss that step 3 lost."""
    sink = JsonlSink(path)
    for step in steps:
        loss = math.nan if step == 3 else 9.0 - step / 7
        row = {"next_row": 8 * step, "loss": loss, "lr": lr, "layer_grad_norm/layers.0": 0.1 + step}
        sink.log(step, row | {"tokens_per_s": 2e3 / 3, "grad_norm": 1.5})
        if step % 4 == 0:
            sink.log(step, {"eval_loss": 8.0 + 1 / step, "eval_loss/wiki": 7.5})
    sink.close()


@pytest.fixture(scope="module")
def uploads(tmp_path_factory):
    """The run folder, and for each of two uploads: what was asked for outside, and its records.

    Between the uploads the run goes on.
    """
    folder = tmp_path_factory.mktemp("upload")
    run_dir = folder / "private-corpus-run"
    (run_dir / "wandb").mkdir(parents=True)
    (run_dir / "wandb" / "run_id").write_text(LIVE_ID)
    config = PretrainConfig()
    config = replace(
        config,
        data=replace(config.data, path=f"https://me:{PASSWORD}@store/corpus?signature={PASSWORD}"),
        track=replace(config.track, wandb_project="killed", wandb_name="the whole of it"),
        train=replace(config.train, micro_batch_size="auto"),
    )
    (run_dir / "config.yaml").write_text(to_yaml(config))
    (run_dir / "micro_batch.json").write_text('{"micro_batch_size": 24}')
    metrics = run_dir / "metrics.jsonl"
    attempt(metrics, range(1, 10), lr=1e-3)
    with open(metrics, "a") as file:
        file.write('{"step": 10, "lo')
    assert truncate_metrics(metrics, 6, folder / "removed.jsonl", True) == 5
    attempt(metrics, range(7, 13), lr=1 / 3)
    seen = []
    for _ in range(2):
        asked = run_watched(run_dir, folder, UPLOAD, can_trace())
        seen.append((asked, metrics.read_text(), written(run_dir)))
        attempt(metrics, range(13, 15), lr=1 / 3)
    return run_dir, config, seen


def written(run_dir):
    """Records of every .wandb file of an upload, by its place below the run folder."""
    files = (run_dir / "upload").rglob("*.wandb")
    return {
        path.relative_to(run_dir): read_wandb(path)
        for path in files
        if "latest-run" not in path.parts
    }


def run_record(records):
    [run] = [record.run for record in records if record.HasField("run")]
    return run


def history(records):
    """Step and numbers of every row, in the order of the file."""
    rows = []
    for record in records:
        if record.HasField("history"):
            row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json)
                   for item in record.history.item}  # fmt: skip
            assert row["_step"] == record.history.step.num
            rows.append((row["_step"], {k: v for k, v in row.items() if not k.startswith("_")}))
    return rows


def expected(lines):
    """The same of metrics.jsonl: the rows of a step together, without what was not finite."""
    steps = {}
    for row in map(json.loads, lines.splitlines()):
        step, _ = row.pop("step"), row.pop("time")
        steps.setdefault(step, {}).update({k: v for k, v in row.items() if v is not None})
    return list(steps.items())


def test_every_row_arrives_once_at_its_step(uploads):
    _, _, seen = uploads
    for (_, lines, files), last in zip(seen, (12, 14), strict=True):
        [records] = files.values()
        rows = history(records)
        assert [step for step, _ in rows] == list(range(1, last + 1))
        assert rows == expected(lines)
    assert "loss" not in dict(rows)[3] and "eval_loss" in dict(rows)[12]
    assert [dict(rows)[step]["lr"] for step in (6, 7)] == [1e-3, 1 / 3]


def test_a_second_upload_replaces_the_first(uploads):
    run_dir, _, [(_, _, first), (_, _, second)] = uploads
    assert len(first) == len(second) == 1
    assert first.keys() != second.keys()
    ids = {run_record(records).run_id for files in (first, second) for records in files.values()}
    assert ids == {(run_dir / "upload" / "wandb" / "run_id").read_text()}


def test_the_run_of_the_attempts_is_left_alone(uploads):
    run_dir, _, [_, (_, _, files)] = uploads
    [run] = map(run_record, files.values())
    assert run.run_id != LIVE_ID
    assert not run.resume and not run.resumed, "W&B would go on behind the steps that it has"
    assert [path.name for path in (run_dir / "wandb").iterdir()] == ["run_id"]
    assert (run_dir / "wandb" / "run_id").read_text() == LIVE_ID


def test_name_and_hyperparameters_are_those_of_the_run(uploads):
    _, config, [_, (_, _, files)] = uploads
    [run] = map(run_record, files.values())
    assert (run.project, run.display_name) == ("killed", "the whole of it")
    told = {item.key: json.loads(item.value_json) for item in run.config.update}
    del told["_wandb"]
    assert told.keys() == flatten(config).keys()
    assert told["optim.lr"] == str(config.optim.lr)
    assert told["train.micro_batch_size"] == "24"
    assert told["data.path"] == "https://store/corpus"


def test_it_asks_nobody_outside_even_with_a_key(uploads):
    _, _, seen = uploads
    assert [asked for asked, _, _ in seen] == [[], []]


def test_neither_secrets_nor_the_machine_are_told(uploads):
    run_dir, _, [_, (_, _, files)] = uploads
    for path, records in files.items():
        assert run_record(records).host == ""
        content = (run_dir / path).read_bytes()
        for private in (KEY, PASSWORD, os.uname().release, str(run_dir.parent)):
            assert private.encode() not in content
    names = {path.name for path in (run_dir / "upload").rglob("*") if path.is_file()}
    assert not names & {"wandb-metadata.json", "output.log", "diff.patch", "requirements.txt"}


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "config.yaml").write_text(to_yaml(PretrainConfig()))
    attempt(tmp_path / "metrics.jsonl", range(1, 3), lr=1.0)
    return tmp_path


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"step": 1, "loss": 1.0}, {"step": 1, "loss": 2.0}], "line 2: step 1 has loss again"),
        ([{"step": 1, "loss": None}, {"step": 1, "loss": 2.0}], "line 2: step 1 has loss again"),
        ([{"step": 2}, {"step": 3}, {"step": 2}], "line 3: step 2 comes after step 3"),
    ],
)
def test_a_step_that_comes_twice_is_refused(run_dir, rows, told):
    (run_dir / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataFault, match=told):
        wandb_upload.upload_run(ReportConfig(run_dir=str(run_dir)))
    assert not (run_dir / "upload").exists()


def test_a_picture_needs_no_wandb(run_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert cli.main(["report", f"run_dir={run_dir}"]) == 0
    assert not (run_dir / "upload").exists()


def test_a_wandb_that_cannot_start_is_a_configuration_error(run_dir, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert cli.main(["report", f"run_dir={run_dir}", "upload=wandb"]) == 2
    assert "W&B cannot start offline" in capsys.readouterr().err


def test_what_was_not_sent_in_time_is_told(run_dir, monkeypatch, capsys):
    run = MagicMock(dir=str(run_dir / "a run" / "files"))
    run.__exit__.side_effect = TimeoutError("Timed out finishing run.")
    monkeypatch.setattr(wandb_upload, "start_run", lambda *_, **__: run)
    assert cli.main(["report", f"run_dir={run_dir}", "upload=wandb", "upload_mode=online"]) == 1
    told = capsys.readouterr().err
    assert "not all was sent within" in told
    assert f"wandb sync '{run_dir / 'a run'}'" in told


ONLINE_WITHOUT_A_SERVER = """
import sys

from roberta_dist import cli
from roberta_dist.track import wandb_sink

wandb_sink.INIT_TIMEOUT_S = 2.0
report = ["report", f"run_dir={sys.argv[1]}", "upload=wandb", "upload_mode=online"]
sys.exit(cli.main(report))
"""


def test_online_without_a_server_is_told_with_the_way_out(run_dir):
    nobody = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": KEY}
    done = subprocess.run(
        [sys.executable, "-c", ONLINE_WITHOUT_A_SERVER, str(run_dir)],
        env=os.environ | nobody,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    assert "W&B cannot start online" in done.stderr
    assert "upload_mode=offline" in done.stderr
