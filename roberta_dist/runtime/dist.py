"""Small collectives that are no-ops in a world of one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from roberta_dist.errors import RobertaDistError

LOGGER = logging.getLogger(__name__)
T = TypeVar("T")


def _active() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def all_sum(values: Tensor) -> Tensor:
    """Sum over ranks, in place."""
    if _active():
        dist.all_reduce(values, op=dist.ReduceOp.SUM)
    return values


def all_max(values: Tensor) -> Tensor:
    """Maximum over ranks, in place."""
    if _active():
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values


def gather_to_main(value: Any) -> list[Any]:
    """`value` of every rank, in rank order, on rank 0; an empty list elsewhere."""
    if not _active():
        return [value]
    gathered: list[Any] = [None] * dist.get_world_size() if dist.get_rank() == 0 else []
    dist.gather_object(value, gathered if dist.get_rank() == 0 else None)
    return gathered


def gather_everywhere(value: T) -> list[T]:
    """`value` of every rank, in rank order, on all of them."""
    if not _active():
        return [value]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def broadcast_from_main(value: Any) -> Any:
    """Rank 0's `value` on every rank."""
    if not _active():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def barrier() -> None:
    """Wait for every rank."""
    if _active():
        dist.barrier()


def on_main(action: Callable[[], T]) -> T:
    """Run `action` on rank 0 and give its result, or its error, to every rank.

    An error raised on one rank alone would leave the others waiting in their next collective.

    Raises:
        RobertaDistError: on all ranks; in place of an error of another kind, which is logged on rank 0.
    """
    outcome: tuple[T | None, RobertaDistError | None] = (None, None)
    if not _active() or dist.get_rank() == 0:
        try:
            outcome = (action(), None)
        except RobertaDistError as error:
            outcome = (None, error)
        except Exception as error:
            if not _active():
                raise
            LOGGER.exception("on rank 0")
            outcome = (None, RobertaDistError(f"rank 0: {error!r}", "see its log"))
    result, failure = broadcast_from_main(outcome)
    if failure is not None:
        raise failure
    return result  # type: ignore[no-any-return]


def on_all(action: Callable[[], T]) -> T:
    """Run `action` on every rank and give each its result; an error on one is raised on all."""
    result: T | None = None
    failure: RobertaDistError | None = None
    try:
        result = action()
    except RobertaDistError as error:
        failure = error
    for found in gather_everywhere(failure):
        if found is not None:
            raise found
    return result  # type: ignore[return-value]
