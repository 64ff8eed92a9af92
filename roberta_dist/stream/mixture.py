"""Which corpus each row belongs to: exact shares at every point of the run, without state.

A mixture repeats a pattern of 4096 rows. In it corpus c has `rates[c]` rows, the i-th of them near
(i + 1/2) / rates[c] of the pattern, so that every prefix holds each corpus's share within about a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PERIOD = 4096
"""Rows after which a mixture repeats; shares are multiples of 1 / PERIOD."""


@dataclass(frozen=True)
class Mixture:
    """Shares of C corpora.

    Attributes:
        rates_C: int64 rows of each corpus in a period; they sum to PERIOD.
        corpus_P: int64 corpus of each row of the period.
        place_P: int64 how many rows of that corpus come before it in the period.
    """

    rates_C: NDArray[np.int64]
    corpus_P: NDArray[np.int64]
    place_P: NDArray[np.int64]

    def count(self, rows: int) -> NDArray[np.int64]:
        """Rows of each corpus among the first `rows`, int64 [C]."""
        periods, rest = divmod(rows, PERIOD)
        return periods * self.rates_C + np.bincount(
            self.corpus_P[:rest], minlength=len(self.rates_C)
        )


def make_mixture(weights: list[float]) -> Mixture:
    """The mixture of `weights` (any scale, at least one positive).

    Shares are rounded to 1 / PERIOD by largest remainder; a positive weight keeps at least one row.
    """
    shares = np.asarray(weights, dtype=np.float64)
    exact = shares / shares.sum() * PERIOD
    rates = np.floor(exact).astype(np.int64)
    rates[(shares > 0) & (rates == 0)] = 1
    while (missing := PERIOD - int(rates.sum())) != 0:
        # Give to those most below their share, take from those most above it.
        if missing > 0:
            rates[int(np.argmax(np.where(shares > 0, exact - rates, -np.inf)))] += 1
        else:
            rates[int(np.argmin(np.where(rates > 1, exact - rates, np.inf)))] -= 1
    corpus = np.repeat(np.arange(len(rates)), rates)
    place = np.concatenate([np.arange(rate) for rate in rates])
    order = np.argsort((place + 0.5) / rates[corpus], kind="stable")
    return Mixture(rates, corpus[order].astype(np.int64), place[order].astype(np.int64))
