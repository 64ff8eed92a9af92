"""One root dataclass per verb; the matching yaml in conf/ has the verb's name."""

from __future__ import annotations

from dataclasses import dataclass, fields

from roberta_dist.config.backend import check_backend
from roberta_dist.config.cluster import ClusterConfig
from roberta_dist.config.corpus import CorpusConfig, TokenizerConfig
from roberta_dist.config.data import DataConfig, MaskingConfig
from roberta_dist.config.fields import free, group, require
from roberta_dist.config.guard import GuardConfig
from roberta_dist.config.model import KernelsConfig, ModelConfig
from roberta_dist.config.operate import LogsConfig, StatusConfig, StopConfig
from roberta_dist.config.optim import OptimConfig, ScheduleConfig
from roberta_dist.config.prepare import PrepareTaskConfig
from roberta_dist.config.train import CheckpointConfig, EngineConfig, TrainConfig
from roberta_dist.config.watch import EvaluateConfig, TrackConfig, Upload, UploadMode


@dataclass(frozen=True)
class PrepareConfig:
    """`roberta-dist prepare`: text in, tokenizer and shards out."""

    corpus: CorpusConfig = group(CorpusConfig)
    tokenizer: TokenizerConfig = group(TokenizerConfig)
    prepare: PrepareTaskConfig = group(PrepareTaskConfig)
    output: str = free("corpora/docstrings")
    """Folder to write; a complete one with the same settings is left alone."""
    progress: bool = free(True)
    """Show progress bars."""


@dataclass(frozen=True)
class PretrainConfig:
    """`roberta-dist pretrain` and `roberta-dist launch`: one run."""

    run_dir: str = free("runs/default")
    """Run folder; starting in an existing one resumes it."""
    init: str | None = free(None)
    """Warm start: a checkpoint (…/step_00001000) or a run folder (its newest) whose weights a new run
    begins with; of no effect once the run has a checkpoint of its own."""
    init_optimizer: bool = free(False)
    """Take the optimizer's moments and its count of updates from there too."""
    data: DataConfig = group(DataConfig)
    masking: MaskingConfig = group(MaskingConfig)
    model: ModelConfig = group(ModelConfig)
    optim: OptimConfig = group(OptimConfig)
    schedule: ScheduleConfig = group(ScheduleConfig)
    train: TrainConfig = group(TrainConfig)
    engine: EngineConfig = group(EngineConfig)
    kernels: KernelsConfig = group(KernelsConfig)
    checkpoint: CheckpointConfig = group(CheckpointConfig)
    evaluate: EvaluateConfig = group(EvaluateConfig)
    track: TrackConfig = group(TrackConfig)
    guard: GuardConfig = group(GuardConfig)
    cluster: ClusterConfig = group(ClusterConfig)

    def __post_init__(self) -> None:
        require(
            bool(self.run_dir), "run_dir", repr(self.run_dir), "is empty", "give run_dir=FOLDER"
        )
        require(
            self.data.longest <= self.model.max_positions,
            "data.sequence_length",
            self.data.longest,
            f"is longer than model.max_positions={self.model.max_positions}",
            "raise model.max_positions or shorten data.sequence_length",
        )
        for phase in self.data.phases:
            require(
                phase.from_step < self.schedule.max_steps,
                "data.phases: from_step",
                phase.from_step,
                f"lies beyond schedule.max_steps={self.schedule.max_steps}",
                "leave the phase out, or raise schedule.max_steps",
            )
        profile, last = self.train.profile, self.schedule.max_steps
        require(
            not profile or profile[1] <= last + 1,
            "train.profile",
            profile,
            f"ends beyond schedule.max_steps={last}",
            f"trace steps up to train.profile=[…,{last + 1}], or raise schedule.max_steps",
        )
        check_backend(self.optim, self.engine)


@dataclass(frozen=True)
class LaunchConfig(PretrainConfig):
    """`roberta-dist launch`: a run, and how it is started."""

    dry_run: bool = free(False)
    """Print what would be started or submitted, and start nothing."""
    prepare_first: list[str] = free([])
    """Overrides of `prepare` (without `output`, which is data.path) whose corpus is made before:
    for cluster=slurm as jobs that the training waits for."""

    @property
    def run(self) -> PretrainConfig:
        """What the workers get."""
        return PretrainConfig(
            **{item.name: getattr(self, item.name) for item in fields(PretrainConfig)}
        )


@dataclass(frozen=True)
class EvaluateVerbConfig:
    """`roberta-dist evaluate`: held-out loss of a checkpoint or an exported folder."""

    run_dir: str | None = free(None)
    """Run folder: its newest complete checkpoint, or the one given by `step`, is measured."""
    step: int | None = free(None)
    """Checkpoint step inside `run_dir`; null takes the newest."""
    model_path: str | None = free(None)
    """Exported Hugging Face folder, instead of `run_dir`."""
    corpus_path: str | None = free(None)
    """Prepared corpus whose held-out split is read; null takes the run's."""
    sequence_length: int | None = free(None)
    """Tokens in a row; null takes the run's, or the exported model's longest."""
    evaluate: EvaluateConfig = group(EvaluateConfig)
    """`every_steps` has no meaning here."""

    def __post_init__(self) -> None:
        require(
            (self.run_dir is None) != (self.model_path is None),
            "run_dir, model_path",
            (self.run_dir, self.model_path),
            "exactly one must be given",
            "add run_dir=RUN or model_path=FOLDER",
        )
        require(
            self.model_path is None or self.corpus_path is not None,
            "corpus_path",
            self.corpus_path,
            "must be given with model_path",
            "add corpus_path=FOLDER",
        )


@dataclass(frozen=True)
class ExportConfig:
    """`roberta-dist export`: a checkpoint becomes a Hugging Face folder."""

    run_dir: str = free("???")
    """Run folder."""
    step: int | None = free(None)
    """Checkpoint step; null takes the newest complete one."""
    output: str | None = free(None)
    """Folder to write; null is RUN/export."""
    tolerance: float = free(1e-4)
    """Largest absolute logit difference to transformers' model that is accepted (fp32)."""


@dataclass(frozen=True)
class PredictConfig:
    """`roberta-dist predict`: what an exported model says about a text."""

    task: str = free("fill_mask")
    """`fill_mask` is the only task so far."""
    model_path: str = free("???")
    """Exported Hugging Face folder."""
    text: list[str] = free([])
    """Texts that contain `<mask>`."""
    top_k: int = free(5)
    """Candidates shown for each mask."""

    def __post_init__(self) -> None:
        require(self.task == "fill_mask", "task", self.task, "must be fill_mask")
        require(self.top_k > 0, "top_k", self.top_k, "must be positive")
        require(
            bool(self.text), "text", self.text, "is empty", "add 'text=[\"A <mask> sentence.\"]'"
        )


@dataclass(frozen=True)
class DoctorConfig:
    """`roberta-dist doctor`: what this machine has and what a run here would use."""

    path: str = free(".")
    """Folder whose disk is checked."""


@dataclass(frozen=True)
class ReportConfig:
    """`roberta-dist report`: a run folder's metrics as a picture."""

    run_dir: str = free("???")
    """Run folder."""
    output: str | None = free(None)
    """PNG to write; null is RUN/metrics.png."""
    upload: Upload = free(Upload.none)
    """`wandb` also makes one W&B run of metrics.jsonl, below RUN/upload, with the run's own
    `track.wandb_project` and `track.wandb_name`; a second call replaces it."""
    upload_mode: UploadMode = free(UploadMode.offline)
    """`offline` writes and sends nothing, even where a key is found; `online` sends at once."""


VERB_CONFIGS: dict[str, type] = {
    "prepare": PrepareConfig,
    "pretrain": PretrainConfig,
    "launch": LaunchConfig,
    "evaluate": EvaluateVerbConfig,
    "export": ExportConfig,
    "predict": PredictConfig,
    "doctor": DoctorConfig,
    "report": ReportConfig,
    "status": StatusConfig,
    "logs": LogsConfig,
    "stop": StopConfig,
}
"""Root dataclass of each verb."""
