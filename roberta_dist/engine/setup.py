"""Device, process group and the DeepSpeed engine itself."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from torch import nn
from torch.optim import Optimizer

from roberta_dist.config.roots import PretrainConfig
from roberta_dist.config.train import Precision
from roberta_dist.engine.ds_config import deepspeed_config
from roberta_dist.engine.segments import bind_lamb
from roberta_dist.errors import ConfigError
from roberta_dist.optim.lamb import Lamb
from roberta_dist.runtime.world import World


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def init_world(world: World, timeout_s: int) -> torch.device:
    """Join the process group and pick this rank's device.

    A single process needs no launcher: it meets itself on a free port.
    """
    os.environ.setdefault("RANK", str(world.rank))
    os.environ.setdefault("WORLD_SIZE", str(world.world_size))
    os.environ.setdefault("LOCAL_RANK", str(world.local_rank))
    if world.world_size == 1:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(_free_port()))
    accelerator = get_accelerator()
    if accelerator.device_name() == "cpu":
        device = torch.device("cpu")
    else:
        accelerator.set_device(world.local_rank)
        device = torch.device(accelerator.device_name(world.local_rank))
    deepspeed.init_distributed(
        dist_backend=accelerator.communication_backend_name(),
        timeout=timedelta(seconds=timeout_s),
        verbose=False,
    )
    if device.type == "cpu":
        _release_shared_memory(world)
    return device


def _release_shared_memory(world: World) -> None:
    """Take away the name of this rank's all-reduce buffer, now that every rank has it mapped.

    DeepSpeed 0.19.8 (csrc/cpu/comm/shm.cpp) never removes these 66 MiB a rank, killed or not, and
    they are memory. Without a name they are gone with the last process that has them open.
    """
    torch.distributed.barrier()
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    name = f"deepspeed_allreduce_buffer_{os.getuid()}_{address}_{port}_{world.rank}"
    (Path("/dev/shm") / name).unlink(missing_ok=True)


def close_world() -> None:
    """Leave the process group."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def initialize(
    model: nn.Module,
    optimizer: Optimizer,
    config: PretrainConfig,
    micro_steps: int,
    device: torch.device,
) -> Any:
    """Wrap model and optimizer in a DeepSpeed engine."""
    ds_config = deepspeed_config(
        config.engine,
        config.train.least_micro_batch_size,
        micro_steps,
        config.optim.max_grad_norm,
        accelerator=device.type != "cpu",
        untested_optimizer=isinstance(optimizer, Lamb),
    )
    if config.engine.precision is Precision.fp16 and not get_accelerator().is_fp16_supported():
        raise ConfigError(
            f"engine.precision=fp16: DeepSpeed has no fp16 on this {device.type}",
            "use engine.precision=bf16 or fp32",
        )
    if config.engine.precision is Precision.fp32:
        model.to(device)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=ds_config)
    if isinstance(optimizer, Lamb):
        bind_lamb(engine, optimizer, device, config.optim.split_qkv)
    return engine
