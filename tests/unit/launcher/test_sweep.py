from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from roberta_dist.config.load import combinations, compose
from roberta_dist.config.roots import LaunchConfig
from roberta_dist.errors import ConfigError
from roberta_dist.launcher import sweep
from roberta_dist.launcher.sweep import alike, array_of, launch_sweep, place

pytestmark = pytest.mark.unit
SLURM = ("cluster=slurm", "cluster.slurm.gpus_per_node=0", "data.path=/corpus")


def members(*words: str) -> dict[str, LaunchConfig]:
    found = combinations(words)
    return {name: compose("launch", LaunchConfig, own) for name, own in found.items()}


def test_every_combination_once_under_the_name_of_what_differs():
    words = [
        "optim.lr=1e-3,5e-4",
        "experiment=quickstart",
        "run_dir='a,b'",
        "train.seed=range(1,3)",
    ]
    assert combinations(words) == {
        f"optim.lr={lr},train.seed={seed}": [
            f"optim.lr={lr}", "experiment=quickstart", "run_dir='a,b'", f"train.seed={seed}",
        ]
        for lr in ("0.001", "0.0005") for seed in (1, 2)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train.seed=1,1"], "train.seed=1 comes twice"),
        (["seed"], "missing EQUAL"),
        (["train.seed=range(1,1)"], "a range holds no value"),
        (["train.seed=interval(0,1)"], "Can only enumerate"),
    ],
)
def test_what_is_no_sweep_is_refused(words, told):
    with pytest.raises(ConfigError, match=told):
        combinations(words)


def test_each_member_has_a_folder():
    placed = place(members("run_dir=runs/a", "train.seed=1,2", "data.path=/x/y,'/a b'"))
    assert [config.run_dir for config in placed] == [
        "runs/a/train.seed=1,data.path=_x_y", "runs/a/train.seed=1,data.path=_a_b_",
        "runs/a/train.seed=2,data.path=_x_y", "runs/a/train.seed=2,data.path=_a_b_",
    ]  # fmt: skip
    own = place(members("run_dir=runs/a,runs/b"))
    assert [config.run_dir for config in own] == ["runs/a", "runs/b"]
    with pytest.raises(ConfigError, match="4 members of the sweep have 2 folders"):
        place(members("run_dir=runs/a,runs/b", "train.seed=1,2"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["cluster=slurm,local"], "in one sweep"),
        (["train.seed=1,2", "prepare_first=['corpus=text']"], "would prepare the corpus"),
        (["train.seed=1,2", "data.path=/nowhere/at/all"], "no prepared corpus there"),
    ],
)
def test_nothing_is_started_where_one_member_cannot_be(words, told, monkeypatch):
    monkeypatch.setattr(sweep, "launch", lambda config: pytest.fail("started"))
    with pytest.raises(ConfigError, match=told):
        launch_sweep(members(*words))


def test_members_that_ask_for_the_same_are_one_array():
    found = members(*SLURM, "run_dir=/runs", "train.seed=1,2", "cluster.nodes=1,2")
    runs = [config.run for config in place(found)]
    assert [[run.cluster.nodes for run in array] for array in alike(runs)] == [[1, 1], [2, 2]]


def test_each_part_runs_the_script_of_its_member(tmp_path):
    found = members(*SLURM, "train.seed=1,2,3", "cluster.slurm.sweep_at_once=2")
    names = ["plain", "it's $(touch pwned)", 'a "b" `touch pwned`']
    runs = [
        replace(config.run, run_dir=str(tmp_path / name))
        for config, name in zip(found.values(), names, strict=True)
    ]
    scripts = []
    for run in runs:
        folder = Path(run.run_dir) / "slurm" / "submit_000"
        folder.mkdir(parents=True)
        scripts.append(folder / "submit.sbatch")
        scripts[-1].write_text('echo "$0"; echo told >&2\n')
    array = array_of(runs, scripts)
    assert array.options == ["--array=0-2%2"] and array.folder == tmp_path
    assert f"#SBATCH --output={tmp_path}/slurm/%j.out" in array.script
    for part, run in enumerate(runs):
        environ = {"SLURM_ARRAY_TASK_ID": str(part), "SLURM_ARRAY_JOB_ID": "12"}
        subprocess.run(["bash", "-c", array.script], env=environ, cwd=tmp_path, check=True)
        log = Path(run.run_dir) / "slurm" / f"12_{part}.out"
        assert log.read_text() == f"{scripts[part]}\ntold\n"
    assert not list(tmp_path.glob("**/pwned"))


def test_here_members_run_one_after_the_other_until_one_is_stopped(monkeypatch, tmp_path, capsys):
    codes = {"train.seed=1": 3, "train.seed=2": 0, "train.seed=3": 0}
    begun = []

    def launch(config: LaunchConfig) -> int:
        begun.append(Path(config.run_dir).name)
        return codes[begun[-1]]

    monkeypatch.setattr(sweep, "launch", launch)
    monkeypatch.setattr(sweep, "ready", lambda config: config.run)
    # the first failed, which is its own affair; the second has no DONE, so it was stopped
    assert launch_sweep(members(f"run_dir={tmp_path}", "train.seed=1,2,3")) == 3
    assert begun == ["train.seed=1", "train.seed=2"]
    begun.clear()
    trials = members(f"run_dir={tmp_path}", "train.seed=1,2,3", "train.dry_run=true")
    assert launch_sweep(trials) == 3 and len(begun) == 3  # a trial leaves no DONE
    assert "train.seed=2: stopped, and so the sweep" in capsys.readouterr().err
