"""`train`, `engine`, `checkpoint`: batch, precision, sharding, saving."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from roberta_dist.config.fields import free, identity, require

AUTO = "auto"


@dataclass(frozen=True)
class TrainConfig:
    """The global batch and what the loop does around a step."""

    seed: int = identity(1)
    """Seed of order, masks, initial weights and dropout."""
    global_batch_size: int = identity(8192)
    """Sequences in one optimizer step over all ranks."""
    micro_batch_size: int | str = free(16)
    """Sequences one rank computes at a time; accumulation follows from it. `auto`: the most that fit
    in memory, found at the start of the run and kept in its folder."""
    memory_budget_mib: int = free(0)
    """MiB that a rank may come to hold where `micro_batch_size` is `auto`, on its accelerator or, on a
    CPU, resident; 0 takes what it has and its share of what is free when the run starts."""
    deterministic: bool = free(False)
    """On a GPU: deterministic kernels only (slower). A CPU run always is."""
    skip_budget: int = free(0)
    """Batches with a non-finite loss or gradient that may be skipped before the run stops."""
    skip_steps: list[int] = free([])
    """Steps, as in metrics.jsonl, whose batch is passed over: read, not trained on, counted as skipped."""
    early_stop_patience: int = free(0)
    """Stop after this many evaluations without a better held-out loss; 0 is off."""
    extend: bool = free(False)
    """Allow a resumed run to raise `schedule.max_steps` under a decay that depends on it."""
    dry_run: bool = free(False)
    """One forward, backward, step, save, load and export at full size, then exit."""
    timeout_s: int = free(1800)
    """Seconds a collective may wait for a rank before the run is ended."""
    hang_timeout_s: int = free(900)
    """Seconds without a step (or a held-out batch, or an end of a save) after which a rank writes the
    stacks of its threads into its log folder and ends, exit code 5; 0 is off."""
    profile: list[int] = free([])
    """First step that rank 0 traces into RUN/profile, counted as in metrics.jsonl, and the one after
    the last: `[10,13]` are 10, 11 and 12. The traced steps are slower; empty is off."""
    profile_memory: bool = free(False)
    """Trace the memory of those steps too: by operator, and on a GPU every block."""

    def __post_init__(self) -> None:
        require(self.seed >= 0, "train.seed", self.seed, "must be ≥ 0")
        for key in ("global_batch_size", "timeout_s"):
            value = vars(self)[key]
            require(value > 0, f"train.{key}", value, "must be positive")
        for key in (
            "skip_budget",
            "early_stop_patience",
            "memory_budget_mib",
            "hang_timeout_s",
        ):
            value = vars(self)[key]
            require(value >= 0, f"train.{key}", value, "must be ≥ 0")
        size = self.micro_batch_size
        require(
            size == AUTO if isinstance(size, str) else size > 0,
            "train.micro_batch_size",
            size,
            f"must be a positive whole number, or {AUTO}",
        )

        steps = self.skip_steps
        require(all(step > 0 for step in steps), "train.skip_steps", steps, "must be ≥ 1")
        self._check_profile()

    def _check_profile(self) -> None:
        profile = self.profile
        require(
            not profile or (len(profile) == 2 and 1 <= profile[0] < profile[1]),
            "train.profile",
            profile,
            "must be the first step, from 1, and a later one that is not traced any more",
            "use train.profile=[10,13] for steps 10, 11 and 12, or [] for none",
        )
        require(
            bool(profile) or not self.profile_memory,
            "train.profile_memory",
            self.profile_memory,
            "needs the steps to trace",
            "add train.profile=[10,13]",
        )

    @property
    def least_micro_batch_size(self) -> int:
        """`micro_batch_size`, or 1 where it is still to be found."""
        return 1 if isinstance(self.micro_batch_size, str) else self.micro_batch_size


class Precision(str, Enum):
    """Type of weights and activations in forward and backward; the master weights are fp32."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Offload(str, Enum):
    """Where master weights and optimizer state live, and the update runs."""

    none = "none"
    cpu = "cpu"


@dataclass(frozen=True)
class EngineConfig:
    """DeepSpeed ZeRO."""

    stage: int = free(1)
    """ZeRO stage: 0 replicates, 1 shards optimizer state, 2 also gradients, 3 also weights."""
    precision: Precision = identity(Precision.fp32)
    """Compute type; gradients are accumulated in fp32 whatever it is."""
    communication: Precision = identity(Precision.fp32)
    """Type in which ranks exchange gradients; a shorter one halves the bytes and rounds."""
    loss_scale: float = identity(65536.0)
    """fp16: what the loss is multiplied by at the start; halved when a gradient overflows."""
    loss_scale_window: int = identity(1000)
    """fp16: updates in a row after which the loss scale doubles; 0 keeps it."""
    offload: Offload = free(Offload.none)
    """`cpu` keeps master weights, moments and the update in host memory (ZeRO-Offload)."""
    sub_group_size: int = free(1_000_000_000)
    """Stage 3: elements the optimizer handles at a time."""
    bucket_size: int = free(50_000_000)
    """Elements in one reduce or gather bucket."""

    def __post_init__(self) -> None:
        require(self.stage in (0, 1, 2, 3), "engine.stage", self.stage, "must be 0, 1, 2 or 3")
        require(
            self.stage > 0 or self.precision is Precision.fp32,
            "engine.stage",
            self.stage,
            f"cannot accumulate {self.precision.value} gradients in fp32 (DeepSpeed refuses it)",
            "use engine.stage=1",
        )
        require(
            self.stage > 0 or self.offload is Offload.none,
            "engine.offload",
            self.offload.value,
            "needs sharded optimizer state",
            "use engine.stage=1, 2 or 3",
        )
        require(
            self.stage > 0 or self.communication is Precision.fp32,
            "engine.communication",
            self.communication.value,
            "is for sharded gradients",
            "use engine.stage=1, 2 or 3",
        )
        require(self.loss_scale >= 1, "engine.loss_scale", self.loss_scale, "must be ≥ 1")
        window = self.loss_scale_window
        require(window >= 0, "engine.loss_scale_window", window, "must be ≥ 0 (0 keeps it)")
        for key in ("sub_group_size", "bucket_size"):
            value = vars(self)[key]
            require(value > 0, f"engine.{key}", value, "must be positive")


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save and what to keep."""

    every_steps: int = free(1000)
    """Save every so many steps, and at the end."""
    every_minutes: float = free(0.0)
    """Save also when so many minutes have passed since the last save began; 0 is off."""
    asynchronous: bool = free(True)
    """Write beside the steps, which wait only for the copy into host memory."""
    strict: bool = free(False)
    """Stop at the start if the newest checkpoint is damaged; else the one before it is taken, and the
    damaged one is named and set aside."""
    keep_last: int = free(2)
    """Newest checkpoints kept."""
    keep_every: int = free(0)
    """Also keep every checkpoint whose step is a multiple of this; 0 is off."""
    keep_best: bool = free(True)
    """Also keep the checkpoint with the lowest held-out loss."""

    def __post_init__(self) -> None:
        require(self.every_steps > 0, "checkpoint.every_steps", self.every_steps, "must be ≥ 1")
        require(self.keep_last > 0, "checkpoint.keep_last", self.keep_last, "must be ≥ 1")
        require(self.keep_every >= 0, "checkpoint.keep_every", self.keep_every, "must be ≥ 0")
        minutes = self.every_minutes
        require(minutes >= 0, "checkpoint.every_minutes", minutes, "must be ≥ 0 (0 is off)")
