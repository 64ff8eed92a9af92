"""The canonical batch is flat: rows one after another, no padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roberta_dist.corpus.manifest import SpecialTokens
from roberta_dist.stream.masking import MaskRule, apply_mask


@dataclass(frozen=True)
class Batch:
    """One micro-batch of R rows, T tokens, M of them predicted.

    Attributes:
        tokens_T: uint16 ids, masked.
        positions_T: int32 position inside the row, from 0.
        cu_seqlens: int32 [R+1], where each row starts.
        max_seqlen: longest row.
        masked_index_M: int64 indices into T.
        labels_M: uint16 original ids.
        row_ids_R: int64 global rows; -1 is a weight-0 row.
        nsp_labels_R: int8, 1 where B follows A, 0 where it comes from another document, -1 where that
            is not asked; None in formats without pairs.
    """

    tokens_T: NDArray[np.uint16]
    positions_T: NDArray[np.int32]
    cu_seqlens: NDArray[np.int32]
    max_seqlen: int
    masked_index_M: NDArray[np.int64]
    labels_M: NDArray[np.uint16]
    row_ids_R: NDArray[np.int64]
    nsp_labels_R: NDArray[np.int8] | None = None


def weightless_row(special: SpecialTokens) -> NDArray[np.uint16]:
    """A row that fills a gap: `<s></s>`, nothing to predict."""
    return np.array([special.bos, special.eos], dtype=np.uint16)


def make_batch(
    rows: Sequence[NDArray[np.uint16]],
    row_ids_R: NDArray[np.int64],
    rule: MaskRule,
    mask_row_R: NDArray[np.int64] | None = None,
    nsp_labels_R: NDArray[np.int8] | None = None,
) -> Batch:
    """Concatenate rows and mask them; a row's masks depend only on its key.

    Args:
        rows: complete rows.
        row_ids_R: their global ids; -1 is a weight-0 row.
        rule: how they are masked.
        mask_row_R: their keys; None takes the global ids (dynamic masking).
        nsp_labels_R: next-sentence labels of pair formats.
    """
    keys_R = row_ids_R if mask_row_R is None else mask_row_R
    lengths = np.fromiter(map(len, rows), dtype=np.int32, count=len(rows))
    cu_seqlens = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum(lengths, out=cu_seqlens[1:])
    tokens_T = np.concatenate(rows)
    positions_T = np.arange(len(tokens_T), dtype=np.int32)
    positions_T -= np.repeat(cu_seqlens[:-1], lengths)
    masked = apply_mask(rule, tokens_T, cu_seqlens.astype(np.int64), keys_R)
    return Batch(
        tokens_T=masked.tokens_T,
        positions_T=positions_T,
        cu_seqlens=cu_seqlens,
        max_seqlen=int(lengths.max()),
        masked_index_M=masked.index_M,
        labels_M=masked.labels_M,
        row_ids_R=row_ids_R,
        nsp_labels_R=nsp_labels_R,
    )
