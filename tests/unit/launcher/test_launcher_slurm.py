from __future__ import annotations

import os
import stat
from dataclasses import replace

import pytest

from roberta_dist.config.cluster import ClusterConfig, ClusterKind, Fabric
from roberta_dist.config.data import DataConfig
from roberta_dist.config.roots import LaunchConfig
from roberta_dist.config.slurm import SlurmConfig
from roberta_dist.errors import ConfigError, LaunchError
from roberta_dist.launcher import submit
from roberta_dist.launcher.fabric import fabric_settings, interface_settings
from roberta_dist.launcher.launch import launch

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
    assert ClusterConfig(environment={"TOKENIZERS_PARALLELISM": "false"})


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
