from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from roberta_dist.config.cluster import ClusterConfig, ClusterKind, Fabric
from roberta_dist.config.data import DataConfig
from roberta_dist.config.hosts import HostsConfig, Runner
from roberta_dist.config.roots import LaunchConfig
from roberta_dist.config.slurm import Container, PrepareJobsConfig, SlurmConfig, seconds_of
from roberta_dist.errors import ConfigError, LaunchError
from roberta_dist.launcher import submit
from roberta_dist.launcher.corpus_jobs import corpus_jobs
from roberta_dist.launcher.fabric import fabric_settings, interface_settings
from roberta_dist.launcher.launch import launch
from roberta_dist.launcher.steps import Job

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("told", "default_only", "counts"),
    [
        ("batch* gpu:h100:8(S:0-1)", True, {8}),
        ("batch* (null)\nold gpu:4", True, {0}),
        ("batch* (null)\nold gpu:4", False, {0, 4}),
        ("a* gpu:2,shard:8,gpu:a100:4", True, {6}),
        ("", True, set()),
    ],
)
def test_gpus_of_a_partition(told, default_only, counts):
    assert submit.gpu_counts(told, default_only) == counts


@pytest.fixture
def config(tmp_path):
    (tmp_path / "corpus" / "train").mkdir(parents=True)
    (tmp_path / "corpus" / "train" / "manifest.json").write_text("{}")
    cluster = ClusterConfig(
        kind=ClusterKind.slurm,
        nodes=2,
        slurm=SlurmConfig(gpus_per_node=0, python="/env/bin/python"),
    )
    return LaunchConfig(
        run_dir=str(tmp_path / "run"),
        data=DataConfig(path=str(tmp_path / "corpus")),
        cluster=cluster,
    )


def test_workers_follow_the_gpus(config, monkeypatch):
    def sized(workers, gpus):
        slurm_config = replace(config.cluster.slurm, gpus_per_node=gpus)
        cluster = replace(config.cluster, workers_per_node=workers, slurm=slurm_config)
        return submit.workers_and_gpus(replace(config, cluster=cluster).run)

    assert sized(0, 8) == (8, 8)
    assert sized(0, 0) == (1, 0)
    assert sized(4, 0) == (4, 0)
    assert sized(4, None) == (4, 4)
    monkeypatch.setattr(submit.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="gpus_per_node"):
        sized(0, None)


def test_without_slurm_dry_run_prints_and_launch_says_why(config, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert launch(replace(config, dry_run=True)) == 0
    assert capsys.readouterr().out.startswith("#!/bin/bash\n#SBATCH --job-name=run\n")
    with pytest.raises(LaunchError, match="is not on PATH"):
        launch(config)
    assert not (tmp_path / "run").exists()


def test_a_refusal_tells_what_slurm_said(config, monkeypatch, tmp_path):
    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/sh\necho 'allocation failure: no such partition' >&2\nexit 1\n")
    sbatch.chmod(sbatch.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ConfigError, match="no such partition"):
        launch(config)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def sbatch(monkeypatch, tmp_path):
    """Puts stubs of SLURM's tools on PATH; what they are given stands in `told`."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def put(**scripts):
        for name, script in scripts.items():
            path = tmp_path / name
            path.write_text(f'#!/bin/bash\necho {name} "$@" >>{tmp_path}/told\n{script}\n')
            path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return put


def test_all_jobs_of_a_command_are_submitted_or_none(config, sbatch, tmp_path):
    count = 'touch "$0.n"; n=$(grep -c parsable "$0.n"); echo parsable >>"$0.n"'
    sbatch(
        sbatch=f'[[ $1 == --test-only ]] && exit 0; {count}; ((n < 2)) || {{ echo QOSMaxSubmit >&2; exit 1; }}; echo 4$n',
        scancel="", squeue="echo 'Invalid job id specified' >&2; exit 1", sacct="exit 1",
    )  # fmt: skip
    slurm = replace(config.cluster.slurm, chain=3)
    with pytest.raises(LaunchError, match="QOSMaxSubmit"):
        launch(replace(config, cluster=replace(config.cluster, slurm=slurm)))
    assert (tmp_path / "told").read_text().splitlines()[-1] == "scancel 40 41"


def test_a_cluster_that_does_not_answer_is_no_refusal(config, sbatch, capsys):
    sbatch(sbatch="echo 'allocation failure: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(LaunchError, match="Unable to contact"):
        launch(replace(config, dry_run=True))
    assert capsys.readouterr().out.startswith("#!/bin/bash\n"), "the script is shown all the same"


def test_a_trial_is_one_job(config, sbatch, tmp_path):
    sbatch(sbatch="echo 7", squeue="", sacct="")
    slurm = replace(config.cluster.slurm, chain=3)
    trial = replace(config.train, dry_run=True)
    assert launch(replace(config, train=trial, cluster=replace(config.cluster, slurm=slurm))) == 0
    assert (tmp_path / "told").read_text().count("--parsable") == 1


def jobs_of(config: LaunchConfig, *words: str, **slurm: object) -> dict[str, str]:
    own = replace(config.cluster.slurm, **slurm)
    cluster = replace(config.cluster, slurm=own, environment={"HF_HOME": "/a b"})
    job = Job(Path("/run/slurm/submit_000/config.yaml"), 1, 0, "/env/bin/python")
    made = corpus_jobs(replace(config.run, cluster=cluster), words, job)
    return {corpus_job.name: corpus_job.script for corpus_job in made}


def test_jobs_that_prepare_are_not_those_that_train(config):
    made = jobs_of(
        config, "corpus=text", "corpus.paths=[/text/*/a.txt,/more,rel]", "prepare.tasks=3",
        constraint="h100", extra=["--gres=nvme:1"], qos="long", prologue=["module load x"],
        prepare=PrepareJobsConfig(extra=["--constraint=cpu"]), container=Container.apptainer,
        container_image="i",
    )  # fmt: skip
    read, merge = made["read"], made["merge"]
    assert "--constraint=cpu" in read and "h100" not in read and "nvme" not in read
    assert "--qos=long" in read and "export HF_HOME='/a b'" in read
    assert f"--output={config.run_dir}/slurm/%A_%a.out" in read
    assert f"--output={config.run_dir}/slurm/%j.out" in merge
    before, after = read.split("module load x")
    assert before.rstrip().endswith("not written for it") and after.lstrip().startswith("set -eu\n")
    for folder in ("/text", "/more", config.data.path, config.run_dir):
        assert f"--bind={folder}:{folder}" in read
    assert "rel:" not in read


def test_what_a_container_mounts_is_there(config, sbatch, tmp_path):
    sbatch(sbatch="echo 7", squeue="", sacct="")
    slurm = replace(config.cluster.slurm, container=Container.apptainer, container_image="i")
    data = replace(config.data, path=str(tmp_path / "new"), cache_dir=str(tmp_path / "cache"))
    words = replace(
        config,
        data=data,
        prepare_first=["corpus=docstrings"],
        cluster=replace(config.cluster, slurm=slurm),
    )
    assert launch(words) == 0
    assert (tmp_path / "new").is_dir() and (tmp_path / "cache").is_dir()


def test_a_job_submitted_from_a_job_is_its_own():
    inside = {"SLURM_JOB_ID": "1", "SLURM_MEM_PER_CPU": "9", "SBATCH_X": "1", "SLURM_CONF": "/c",
              "WANDB_API_KEY": "k", "PATH": "/bin"}  # fmt: skip
    assert submit.submission_environment(inside) == {
        "SLURM_CONF": "/c", "WANDB_API_KEY": "k", "PATH": "/bin"
    }  # fmt: skip
    outside = {"SBATCH_ACCOUNT": "mine"}
    assert submit.submission_environment(outside) == outside


def test_secrets_are_kept_out_of_the_configuration():
    with pytest.raises(ConfigError, match="WANDB_API_KEY: looks like a secret"):
        ClusterConfig(environment={"WANDB_API_KEY": "k"})
    for name in (
        "wandb_api_key",
        "PGPASSWORD",
        "OPENAI_APIKEY",
        "DB_PASS",
        "GITHUB_PAT",
        "HF_TOKEN",
        "AWS_ACCESS_KEY_ID",
    ):
        with pytest.raises(ConfigError, match="looks like a secret"):
            ClusterConfig(environment={name: "k"})
    with pytest.raises(ConfigError, match="https_proxy: looks like a secret") as caught:
        ClusterConfig(environment={"https_proxy": "http://me:hunter2@proxy:80"})
    assert "hunter2" not in str(caught.value)
    assert ClusterConfig(
        environment={"TOKENIZERS_PARALLELISM": "false", "https_proxy": "http://proxy:80"}
    )
    for line in ("export WANDB_API_KEY=abc", "HF_TOKEN='x' true", "export A=1 DB_PASS=2"):
        with pytest.raises(ConfigError, match=r"cluster\.slurm\.prologue"):
            SlurmConfig(prologue=[line])
    SlurmConfig(
        prologue=["export WANDB_API_KEY=$(cat ~/.key)", "module load token/1", "echo $HF_TOKEN"]
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"bind_cores": True}, {"shrink": True}, {"nodes": 0},
        {"kind": ClusterKind.hostfile, "shrink": True, "hosts": HostsConfig(runner=Runner.pdsh)},
        {"kind": ClusterKind.local, "nodes": 0},
    ],
)  # fmt: skip
def test_what_would_have_no_effect_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"cluster\."):
        ClusterConfig(**{"kind": ClusterKind.slurm, **wrong})


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("2", 120), ("2:30", 150), ("1:00:00", 3600), ("1-0", 86_400), ("1-1:30", 91_800), ("2-00:00:10", 172_810)],
)  # fmt: skip
def test_time_limits_in_seconds(time, seconds):
    assert seconds_of(time) == seconds


def test_fabrics():
    assert fabric_settings(Fabric.auto) == []
    names = {fabric: [s.name for s in fabric_settings(fabric)] for fabric in Fabric}
    assert names[Fabric.ethernet] == ["NCCL_IB_DISABLE"]
    assert set(names[Fabric.infiniband]) < set(names[Fabric.roce])
    assert all(setting.reason for fabric in Fabric for setting in fabric_settings(fabric))
    assert [(s.name, s.value) for s in interface_settings("ib0")] == [
        ("NCCL_SOCKET_IFNAME", "ib0"), ("GLOO_SOCKET_IFNAME", "ib0")
    ]  # fmt: skip
    assert interface_settings(None) == []
