"""MinHash sketches of documents (Broder 1997), by which near duplicates are found.

A document is the set of its runs of 5 words; case, spacing and Unicode composition do not count.
The 128 minima of its hashes estimate the Jaccard similarity of two sets with a standard error of
at most 0.045. Bands of minima are hashed: documents that share a band are candidates.
"""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from roberta_dist.corpus.split import normalise
from roberta_dist.errors import ConfigError

SHINGLE_WORDS = 5
PERMUTATIONS = 128
SEED = 1
BATCH = 4096
RECALL = 0.99
"""Least chance that two documents right at the threshold share a band."""
_HASH_STEP = np.uint64(0x9E3779B97F4A7C15)


def band_shape(threshold: float) -> tuple[int, int]:
    """Bands and minima a band: the longest bands that still find 99 % at the threshold."""
    for rows in range(PERMUTATIONS, 1, -1):
        bands = PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** bands >= RECALL:
            return bands, rows
    return PERMUTATIONS, 1


class Sketcher:
    """Makes the sketch of a document: a pure function of its text and the threshold.

    Raises:
        ConfigError: `datasketch` is not installed.
    """

    def __init__(self, threshold: float) -> None:
        try:
            from datasketch import MinHash
        except ImportError as error:
            raise ConfigError(
                "corpus.near_duplicates=true: needs the library datasketch",
                "pip install 'roberta_dist[sources]'",
            ) from error
        self._minhash = MinHash(num_perm=PERMUTATIONS, seed=SEED)
        self.bands, self._rows = band_shape(threshold)

    def sketch(self, text: str) -> bytes:
        """uint64 [bands] hashes, then uint32 [128] minima."""
        words = normalise(text).casefold().split()
        count = max(1, len(words) - SHINGLE_WORDS + 1)
        self._minhash.clear()
        for first in range(0, count, BATCH):  # 128 hashes a shingle: a long text at once is GBs
            self._minhash.update_batch(
                " ".join(words[start : start + SHINGLE_WORDS]).encode("utf-8")
                for start in range(first, min(count, first + BATCH))
            )
        signature: NDArray[np.uint32] = self._minhash.hashvalues
        used = signature[: self.bands * self._rows].astype(np.uint64)
        grouped = used.reshape(self.bands, self._rows)
        hashes = np.zeros(self.bands, dtype=np.uint64)
        for column in grouped.T:
            hashes = (hashes ^ column) * _HASH_STEP
            hashes ^= hashes >> np.uint64(29)
        return hashes.astype("<u8").tobytes() + signature.astype("<u4").tobytes()


def write_sketches(bands_file: BinaryIO, signature_file: BinaryIO, sketches: list[bytes]) -> None:
    """Append a run: its hashes band by band, so that the join reads one band without the others."""
    data = np.frombuffer(b"".join(sketches), dtype=np.uint8).reshape(len(sketches), -1)
    split = data.shape[1] - 4 * PERMUTATIONS
    bands_file.write(np.ascontiguousarray(data[:, :split]).view("<u8").T.tobytes())
    signature_file.write(data[:, split:].tobytes())
