"""How many blocks each pack holds, for a format and a length.

`packs.npy` carries the counts of the usual lengths; any other is counted once, with a progress
bar, and kept beside the manifest under the manifest's hash.
"""

from __future__ import annotations

import io
import logging

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from roberta_dist.config.data import InputFormat
from roberta_dist.corpus.manifest import Manifest
from roberta_dist.errors import StorageError
from roberta_dist.runtime.files import atomic_write
from roberta_dist.stream.packs import PackReader, cut_blocks

LOGGER = logging.getLogger(__name__)


def block_counts(
    manifest: Manifest, input_format: InputFormat, length: int, progress: bool = False
) -> NDArray[np.int64]:
    """Blocks of each pack, int64 [packs].

    Raises:
        DataFault: a pack had to be read and is damaged.
    """
    packs = manifest.packs
    column = f"blocks_{length}"
    if input_format is InputFormat.full_sentences and column in (packs.dtype.names or ()):
        return np.asarray(packs[column], dtype=np.int64)
    name = f"{input_format.value}_{length}_{manifest.sha256[:16]}.npy"
    path = manifest.store.derived_folder / "block_counts" / name
    if path.is_file():
        counts = np.load(path, allow_pickle=False)
        if counts.shape == (len(packs),):
            return np.asarray(counts, dtype=np.int64)
    reader = PackReader(manifest)
    eos = manifest.special_tokens.eos
    indices = tqdm(range(len(packs)), f"counting {length}-token rows", disable=not progress)
    counted = [len(cut_blocks(reader.read(i), input_format, length, eos).bounds) for i in indices]
    reader.close()
    counts = np.array(counted, dtype=np.int64)
    buffer = io.BytesIO()
    np.save(buffer, counts, allow_pickle=False)
    try:
        atomic_write(path, buffer.getvalue())
    except StorageError as error:
        LOGGER.warning("block counts are not kept: %s", error)
    return counts
