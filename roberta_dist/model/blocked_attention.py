"""Attention on a CPU: block by block of heads, exact, without padding, with dropout.

What torch has there either knows no dropout or keeps the probabilities of all heads. Here a block of
scores is made, used and forgotten while it is in the cache, forward and backward (Dao et al. 2022,
algorithms 2 and 4), and a row costs its own length squared.

T tokens of all rows · L tokens of a row · H width · N heads · D = H / N
G heads of a group of rows · Q queries of a block of heads
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from roberta_dist.model.fused import Key, Pieces

BLOCK_SCORES = 1 << 20
"""Scores of a block, 4 MiB in fp32: from a quarter to four times as many cost about the same."""


@dataclass(frozen=True)
class _Group:
    """Neighbouring rows of one length that are computed together.

    Attributes:
        start: first token.
        rows: how many.
        length: L.
        heads: N.
        size: D.
        first_score: number of the first score, counted over the batch.
    """

    start: int
    rows: int
    length: int
    heads: int
    size: int
    first_score: int

    @property
    def tokens(self) -> slice:
        return slice(self.start, self.start + self.rows * self.length)

    @property
    def queries(self) -> slice:
        """Its part of a vector with an entry for each query of each head."""
        return slice(self.tokens.start * self.heads, self.tokens.stop * self.heads)

    def split(self, flat_TC: Tensor) -> Tensor:
        """Its tokens of [T, parts · H] as [parts, G, L, D]; a view where it is one row."""
        return self._grid(flat_TC).flatten(1, 2)

    def join(self, flat_TC: Tensor, parts_PGLD: Tensor) -> None:
        """Write [parts, G, L, D] to where `split` takes it from."""
        grid = self._grid(flat_TC)
        grid.copy_(parts_PGLD.view(grid.shape))

    def _grid(self, flat_TC: Tensor) -> Tensor:
        own = flat_TC[self.tokens]
        return own.view(self.rows, self.length, -1, self.heads, self.size).permute(2, 0, 3, 1, 4)

    def blocks(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """(heads of a block, their queries in `queries`, number of the first score [1, 1])."""
        squared, total = self.length * self.length, self.rows * self.heads
        step = max(1, BLOCK_SCORES // squared)
        for head in range(0, total, step):
            end = min(head + step, total)
            first = (self.first_score + head * squared + (1 << 31)) % (1 << 32) - (1 << 31)
            queries = slice(head * self.length, end * self.length)
            yield slice(head, end), queries, torch.tensor([[first]], dtype=torch.int32)


def _groups(starts: Sequence[int], heads: int, size: int) -> Iterator[_Group]:
    """Rows in order; neighbours of one length together as far as a block has room."""
    row, rows, first_score = 0, len(starts) - 1, 0
    lengths = [end - start for start, end in pairwise(starts)]
    while row < rows:
        length, count = lengths[row], 1
        scores = heads * length * length
        while (count + 1) * scores <= BLOCK_SCORES and lengths[row + count : row + count + 1] == [
            length
        ]:
            count += 1
        yield _Group(starts[row], count, length, heads, size, first_score)
        row, first_score = row + count, first_score + count * scores


class _BlockedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        qkv_TC: Tensor,
        starts: Sequence[int],
        heads: int,
        p: float,
        key_2: Key,
        pieces: Pieces,
    ) -> Tensor:
        tokens, width = qkv_TC.shape[0], qkv_TC.shape[1] // 3
        scale = (width // heads) ** -0.5
        mixed_TH = qkv_TC.new_empty(tokens, width)
        wide = torch.promote_types(qkv_TC.dtype, torch.float32)
        log_total = qkv_TC.new_empty(tokens * heads, 1, dtype=wide)
        groups = list(_groups(starts, heads, width // heads))
        for group in groups:
            query, key, value = group.split(qkv_TC)
            mixed_GLD = qkv_TC.new_empty(query.shape)
            total_Q1 = log_total[group.queries]
            for block, queries, first_11 in group.blocks():
                scores = _products(query[block], key[block], scale)
                weights_QK, total_Q1[queries] = pieces.attention_weights(
                    scores.flatten(0, 1), first_11, p, key_2
                )
                torch.bmm(weights_QK.view(scores.shape), value[block], out=mixed_GLD[block])
            group.join(mixed_TH, mixed_GLD)
        ctx.save_for_backward(qkv_TC, mixed_TH, log_total, key_2)
        ctx.groups, ctx.scale, ctx.p, ctx.pieces = groups, scale, p, pieces
        return mixed_TH

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_TH,) = grads
        qkv_TC, mixed_TH, log_total, key_2 = ctx.saved_tensors
        grad_qkv_TC = torch.empty_like(qkv_TC)
        for group in ctx.groups:
            query, key, value = group.split(qkv_TC)
            grad, mixed = group.split(grad_TH)[0], group.split(mixed_TH)[0]
            inner_Q1 = (grad.to(log_total.dtype) * mixed).sum(2).view(-1, 1)
            parts = qkv_TC.new_empty(3, *query.shape)
            for block, queries, first_11 in group.blocks():
                scores = _products(query[block], key[block], ctx.scale)
                weights_QK, grad_QK = ctx.pieces.attention_weights_backward(
                    scores.flatten(0, 1),
                    torch.bmm(grad[block], value[block].mT).flatten(0, 1),
                    log_total[group.queries][queries],
                    inner_Q1[queries],
                    first_11,
                    ctx.p,
                    key_2,
                )
                grad_scores = grad_QK.view(scores.shape)
                parts[0, block] = _products(grad_scores, key[block].mT, ctx.scale)
                parts[1, block] = _products(grad_scores.mT, query[block].mT, ctx.scale)
                torch.bmm(weights_QK.view(scores.shape).mT, grad[block], out=parts[2, block])
            group.join(grad_qkv_TC, parts)
        return grad_qkv_TC, None, None, None, None, None


def _products(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """scale · left · rightᵀ of each head of a block."""
    shape = left.shape[0], left.shape[1], right.shape[1]
    return torch.baddbmm(left.new_empty(shape), left, right.mT, beta=0, alpha=scale)


def blocked_attention(
    qkv_TC: Tensor, starts: Sequence[int], heads: int, p: float, key_2: Key, pieces: Pieces
) -> Tensor:
    """Bidirectional attention of each row to itself.

    Args:
        qkv_TC: [T, 3H] on a CPU, queries, keys, values, each head after head.
        starts: R + 1 cumulative row lengths.
        heads: N.
        p: dropout of the attention weights.
        key_2: of the dropout, see `dropout.draw_keys`; None does not drop.
        pieces: what is done to a block of scores.

    Returns:
        [T, H].
    """
    output: Tensor = _BlockedAttention.apply(qkv_TC, starts, heads, p, key_2, pieces)  # type: ignore[no-untyped-call]
    return output
