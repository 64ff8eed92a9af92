"""The job script: read by an engineer (golden file), and what it refuses to hold.

tests/golden/submit_16x8_h100.sbatch is written anew by `python tests/unit/launcher/test_sbatch.py`.
"""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from roberta_dist.config.load import compose
from roberta_dist.config.roots import LaunchConfig, PretrainConfig
from roberta_dist.config.slurm import PrepareJobsConfig, SlurmConfig
from roberta_dist.errors import ConfigError
from roberta_dist.launcher.sbatch import directives, render
from roberta_dist.launcher.steps import Job, container_mounts

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[3]
TEMPLATE = (ROOT / "launch" / "train.sbatch").read_text(encoding="utf-8")
GOLDEN = ROOT / "tests" / "golden" / "submit_16x8_h100.sbatch"

H100 = [
    "experiment=roberta_base_8k", "cluster=slurm", "cluster.nodes=16", "cluster.fabric=infiniband",
    "cluster.interface=ib0", "cluster.slurm.partition=h100", "cluster.slurm.account=nlp",
    "cluster.slurm.qos=long", "cluster.slurm.constraint=h100", "cluster.slurm.gpus_per_node=8",
    "cluster.slurm.gpu_type=h100", "cluster.slurm.cpus_per_task=12", "cluster.slurm.time=2-00:00:00",
    "cluster.slurm.exclude=[node013]", "cluster.slurm.mail_user=nlp@example.org",
    "cluster.slurm.spare_nodes=1", "cluster.slurm.prologue=[module load cuda/12.8]",
    "cluster.environment={NCCL_DEBUG: WARN}", "run_dir=/scratch/nlp/runs/base",
    "data.path=/scratch/nlp/corpora/mine",
]  # fmt: skip


def composed(*overrides: str) -> PretrainConfig:
    return compose("launch", LaunchConfig, list(overrides)).run


def job(config: PretrainConfig, workers: int = 1, gpus: int = 0, python: str = "/env/bin/python"):
    where = Path(config.run_dir) / "slurm" / "submit_000" / "config.yaml"
    return Job(where, workers, gpus, python, Path("/env/torch_extensions"))


def h100_script() -> str:
    config = composed(*H100)
    return render(config, job(config, 8, 8), TEMPLATE)


def test_a_large_job_reads_as_an_engineer_would_write_it():
    assert h100_script() == GOLDEN.read_text(encoding="utf-8"), "see the first lines of this file"


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["cluster.slurm.transport=deepspeed"],
        ["cluster.slurm.preflight=false", "cluster.slurm.spare_nodes=0"],
        ["cluster.slurm.container=pyxis", "cluster.slurm.container_image='nvcr.io#nvidia/pytorch:25.01'"],
        ["cluster.slurm.container=apptainer", "cluster.slurm.container_image=/images/a b.sif"],
        ["cluster.slurm.signal_lead_s=0", "cluster.slurm.requeues=0", "cluster.fabric=roce"],
    ],
)  # fmt: skip
def test_every_variant_is_bash(overrides):
    config = composed(*H100[:-2], *overrides, "run_dir=/r", "data.path=/c")
    script = render(config, job(config, 8, 8), TEMPLATE)
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    assert "#@" not in script and "\n\n\n" not in script and script.endswith("\n")


def test_containers_see_the_run_and_the_corpora():
    overrides = ["run_dir=/r", "data.path=/c", "cluster=slurm", "cluster.slurm.container_image=i",
                 "cluster.slurm.container_mounts=[/x:/y]"]  # fmt: skip
    pyxis = composed(*overrides, "cluster.slurm.container=pyxis")
    assert container_mounts(pyxis) == ["/r:/r", "/c:/c", "/x:/y"]
    script = render(pyxis, job(pyxis, python="python3"), TEMPLATE)
    assert "--container-mounts=/r:/r,/c:/c,/x:/y" in script and "export PATH" not in script
    apptainer = composed(*overrides, "cluster.slurm.container=apptainer")
    words = "apptainer exec --bind=/r:/r --bind=/c:/c --bind=/x:/y i"
    assert words in render(apptainer, job(apptainer), TEMPLATE)
    assert "exec --nv --bind" in render(apptainer, job(apptainer, gpus=1), TEMPLATE)
    with pytest.raises(ConfigError, match="cannot be mounted"):
        container_mounts(replace(pyxis, run_dir="/a:b"))


def lines(*overrides: str, **job_options) -> list[str]:
    config = composed("cluster=slurm", "run_dir=/r", *overrides)
    return directives(config, job(config, **job_options))


def test_directives_say_what_was_asked():
    plain = lines()
    assert "#SBATCH --nodes=1" in plain and "#SBATCH --exclusive" in plain
    assert not any("gpus" in line or "partition" in line or "mail" in line for line in plain)
    asked = lines("cluster.nodes=4", "cluster.slurm.spare_nodes=2", "cluster.slurm.exclusive=false",
                  "cluster.slurm.requeues=0", "cluster.slurm.memory=null", gpus=2, workers=2)  # fmt: skip
    assert "#SBATCH --nodes=6" in asked and "#SBATCH --gpus-per-node=2" in asked
    assert "#SBATCH --no-requeue" in asked and "#SBATCH --exclusive" not in asked
    assert not any("--mem" in line for line in asked)


def test_directives_are_quoted_for_sbatch():
    extra = """cluster.slurm.extra=['--switches=1','--comment=a # "b"',--hold]"""
    found = lines(extra, "cluster.slurm.constraint='[a|b]&c'", "run_dir='/r/50%/a b'")
    assert '#SBATCH --comment="a # \\"b\\""' in found
    assert "#SBATCH --switches=1" in found and "#SBATCH --hold" in found
    assert '#SBATCH --constraint="[a|b]&c"' in found
    assert '#SBATCH --output="/r/50%%/a b/slurm/%j.out"' in found
    assert '#SBATCH --job-name="a b"' in found


@pytest.mark.parametrize("path", ["/runs/a\nb", "/runs/a\\b", "/runs/a\x7f"])
def test_paths_that_no_job_can_log_to_are_refused(path):
    config = replace(composed("cluster=slurm"), run_dir=path)
    with pytest.raises(ConfigError, match="run_dir="):
        render(config, job(config), TEMPLATE)


@pytest.mark.parametrize(
    "fields",
    [
        {"job_name": "a\n#SBATCH --uid=0"},
        {"partition": "a\rb"},
        {"extra": ["--comment=a\nrm -rf /"]},
        {"extra": ["; rm"]},
        {"extra": ["--a b=c"]},
        {"exclude": ["a b"]},
        {"exclude": ["$(id)"]},
        {"container_mounts": ["/a:/b,/etc:/etc"]},
        {"container_mounts": ["/a"]},
        {"spare_nodes": 1, "preflight": False},
        {"time": "3", "signal_lead_s": 180},
        {"prologue": ["export WANDB_API_KEY=abc"]},
        {"extra": ["-p x"]},
    ],
)
def test_what_would_leave_its_place_is_refused(fields):
    with pytest.raises(ConfigError, match=r"cluster\.slurm\."):
        SlurmConfig(**fields)


def test_what_is_no_option_of_a_job_that_prepares_is_refused():
    with pytest.raises(ConfigError, match=r"cluster\.slurm\.prepare\.extra"):
        PrepareJobsConfig(extra=["--constraint=a\nrm"])


def test_a_blank_in_a_path_is_refused_for_pyxis():
    words = ["cluster=slurm", "cluster.slurm.container=pyxis", "cluster.slurm.container_image=i"]
    config = replace(composed(*words), run_dir="/a b")
    with pytest.raises(ConfigError, match="a blank"):
        render(config, job(config), TEMPLATE)


if __name__ == "__main__":
    GOLDEN.write_text(h100_script(), encoding="utf-8")
