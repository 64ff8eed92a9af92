"""The batches of a run, as all ranks agree on them: read, or stopped, or with a pack left out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator

import torch

from roberta_dist.errors import DataFault, PackFault, RobertaDistError
from roberta_dist.runtime.dist import all_max, gather_everywhere, on_all
from roberta_dist.runtime.world import World
from roberta_dist.stream.batch import Batch
from roberta_dist.stream.loader import Prefetcher, RankReader
from roberta_dist.stream.open import Stream
from roberta_dist.stream.quarantine import Quarantine

LOGGER = logging.getLogger(__name__)


class Stopped(RobertaDistError):
    """A rank was asked to stop; raised on all of them, and caught by the loop."""


def in_step(
    batches: Iterable[Batch], stop_requested: Callable[[], bool] = lambda: False
) -> Iterator[Batch]:
    """Held-out batches, of which every rank has the same number; a fault of one stops all.

    The model's forward pass may wait for the other ranks, so they agree on each batch.

    Raises:
        DataFault: on every rank when one could not read its part.
        Stopped: on every rank when one was asked to stop.
    """
    own = iter(batches)

    def following() -> Batch | None:
        if stop_requested():
            raise Stopped("asked to stop in an evaluation")
        return next(own, None)

    while (batch := on_all(following)) is not None:
        yield batch


class Feed:
    """This rank's batches, one after another.

    Args:
        stream: the plan that all ranks share.
        world: which share this rank reads.
        device: where the ranks' flags meet.
        micro_batch_size: rows of a micro-batch.
        first_row: `next_row` of the first step.
        last_row: rows from here on are not read.
        quarantine: packs that are out already.
    """

    def __init__(
        self,
        stream: Stream,
        world: World,
        device: torch.device,
        micro_batch_size: int,
        first_row: int,
        last_row: int,
        quarantine: Quarantine,
    ) -> None:
        self._stream = stream
        self._device = device
        self._last_row = last_row
        self.save_due = False
        """Whether a rank found in the last `take` that it is time to save."""
        self._reader = RankReader(stream, world, micro_batch_size, quarantine)
        self._prefetcher = Prefetcher(self._reader, first_row, last_row)

    @property
    def quarantine(self) -> Quarantine:
        """Packs that are out."""
        return self._reader.quarantine

    def take(self, row: int, stop_requested: bool, save_due: bool = False) -> list[Batch] | None:
        """The batch at `row`; None when a rank was asked to stop.

        Ranks agree, so none is left waiting; `self.save_due` is what they agree on there. Where
        `data.quarantine_packs` allows it, packs that any rank found damaged are out on all of them
        from this batch on, and it is read again.

        Raises:
            DataFault: on every rank when one could not read its part.
        """
        while True:
            batches: list[Batch] | None = None
            failure: RobertaDistError | None = None
            try:
                batches = self._prefetcher.take()
            except RobertaDistError as error:
                failure = error
            own = [failure is not None, stop_requested, save_due]
            flags = torch.tensor(own, dtype=torch.int32).to(self._device)
            failed, requested, due = all_max(flags).tolist()
            self.save_due = bool(due)
            if requested and not failed:
                return None
            if batches is not None and not failed:
                return batches
            self._leave_out(failure, row)

    def _leave_out(self, failure: RobertaDistError | None, row: int) -> None:
        """Quarantine the packs at fault on any rank, or raise on all of them."""
        where = f"needed for rows [{row}, {row + self._stream.plan.batch_rows(row)})"
        failures = [found for found in gather_everywhere(failure) if found is not None]
        # A server that is away is no reason to go on without its packs.
        faults = [found for found in failures if isinstance(found, PackFault) and found.damaged]
        budget = self._stream.config.quarantine_packs
        known = self.quarantine.packs_out(row)
        again = any((fault.corpus, fault.pack) in known for fault in faults)
        if len(faults) < len(failures) or not budget or again:
            first = failures[0]
            raise DataFault(f"{first.problem}; {where}", first.remedy)
        self._reader.quarantine = self.quarantine.extended(faults, row, budget)
        for fault in faults:
            LOGGER.warning("%s; %s: out from here on, other packs stand in", fault.problem, where)
        self._prefetcher.close()
        self._prefetcher = Prefetcher(self._reader, row, self._last_row)

    def close(self) -> None:
        """Stop reading."""
        self._prefetcher.close()
        self._reader.close()
