"""The canonical batch is flat: rows one after another, no padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roberta_dist.corpus.manifest import SpecialTokens
from roberta_dist.stream.masking import MaskRule, apply_mask
from roberta_dist.stream.packs import BlockPack


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
    """

    tokens_T: NDArray[np.uint16]
    positions_T: NDArray[np.int32]
    cu_seqlens: NDArray[np.int32]
    max_seqlen: int
    masked_index_M: NDArray[np.int64]
    labels_M: NDArray[np.uint16]
    row_ids_R: NDArray[np.int64]


def block_tokens(pack: BlockPack, block: int, special: SpecialTokens) -> NDArray[np.uint16]:
    """One row: `<s>`, the block's payload, and `</s>` where the payload does not end in one.

    A contiguous block (format `blocks`) is always full and takes no closing `</s>`: its bounds
    are exactly one token shorter than the row, so there is no room for it.
    """
    start, end = (int(bound) for bound in pack.bounds[block])
    payload = pack.payload[start:end]
    closing = [] if not pack.closes_rows or payload[-1] == special.eos else [special.eos]
    return np.concatenate(([special.bos], payload, closing)).astype(np.uint16)


def weightless_row(special: SpecialTokens) -> NDArray[np.uint16]:
    """A row that fills a gap: `<s></s>`, nothing to predict."""
    return np.array([special.bos, special.eos], dtype=np.uint16)


def make_batch(
    rows: Sequence[NDArray[np.uint16]], row_ids_R: NDArray[np.int64], rule: MaskRule
) -> Batch:
    """Concatenate rows and mask them; a row's masks depend only on its global id."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    cu_seqlens = np.concatenate(([0], np.cumsum(lengths)))
    tokens_T = np.concatenate(list(rows))
    positions_T = np.arange(len(tokens_T)) - np.repeat(cu_seqlens[:-1], lengths)
    masked = apply_mask(rule, tokens_T, np.repeat(row_ids_R, lengths), positions_T)
    return Batch(
        tokens_T=masked.tokens_T,
        positions_T=positions_T.astype(np.int32),
        cu_seqlens=cu_seqlens.astype(np.int32),
        max_seqlen=int(lengths.max()),
        masked_index_M=masked.index_M,
        labels_M=masked.labels_M,
        row_ids_R=row_ids_R,
    )
