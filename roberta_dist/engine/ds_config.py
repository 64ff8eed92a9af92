"""The DeepSpeed configuration as a pure function of ours."""

from __future__ import annotations

from typing import Any

from roberta_dist.config.train import EngineConfig, Offload, Precision


def deepspeed_config(
    engine: EngineConfig,
    micro_batch_size: int,
    micro_steps: int,
    max_grad_norm: float,
    accelerator: bool,
    untested_optimizer: bool = False,
) -> dict[str, Any]:
    """What `deepspeed.initialize` gets.

    Four defaults of DeepSpeed 0.19.8 are overruled on purpose: clipping (1.0 unless written),
    accumulation in the compute type (bf16 loses small gradients), reduction in it (stage 1) and a
    wait for the device in every forward pass.

    Args:
        engine: stage, precision and sizes.
        micro_batch_size: rows of a micro-batch; only a number in DeepSpeed's logs.
        micro_steps: the most micro-batches of a step. A step may have fewer: the engine sets the
            boundary of each micro-batch itself, and nothing is divided by this number.
        max_grad_norm: 0 is off.
        accelerator: not a CPU: reduce while the backward pass goes on, pin offloaded memory.
        untested_optimizer: allow an optimizer DeepSpeed does not know; ours knows the layout.
    """
    zero: dict[str, Any] = {
        "stage": engine.stage,
        "overlap_comm": accelerator,
        "contiguous_gradients": True,
        "reduce_bucket_size": engine.bucket_size,
        "allgather_bucket_size": engine.bucket_size,
    }
    if engine.stage == 3:
        zero |= {
            "sub_group_size": engine.sub_group_size,
            "stage3_prefetch_bucket_size": engine.bucket_size,
            "stage3_max_live_parameters": 10 * engine.bucket_size,
        }
    if engine.offload is Offload.cpu:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": accelerator}
    return {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": micro_steps,
        "gradient_clipping": max_grad_norm,
        "bf16": {
            "enabled": engine.precision is Precision.bf16,
            "check_grad_overflow": engine.precision is Precision.bf16,
        },
        # A fixed scale for DeepSpeed: the engine sets it before each step (optim/loss_scale.py).
        "fp16": {"enabled": engine.precision is Precision.fp16, "loss_scale": 1.0},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": engine.communication.value,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": untested_optimizer,
        "steps_per_print": 1_000_000_000,
        # DeepSpeed's own stopwatch waits for the device before each forward pass.
        "timers": {"throughput": {"enabled": False}},
        "wall_clock_breakdown": False,
    }
