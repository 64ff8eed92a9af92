"""The tokenizer of a corpus as a folder of this machine, wherever the corpus lies."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from roberta_dist.corpus.bpe import load_bpe
from roberta_dist.corpus.storage import Store
from roberta_dist.errors import ConfigError, DataFault
from roberta_dist.runtime.files import storage_errors

TOKENIZER = "tokenizer"
FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


def local_tokenizer(corpus: Store, sha256: str) -> Path:
    """CORPUS/tokenizer itself, or a verified copy in the cache, written whole or not at all.

    Args:
        corpus: the corpus folder (not a split).
        sha256: `tokenizer_sha256` of its manifests.

    Raises:
        DataFault: a file is missing, or it is another tokenizer.
        StorageError: the cache cannot be written.
    """
    source = corpus.child(TOKENIZER)
    if source.folder is not None:
        return source.folder
    target = corpus.derived_folder / "tokenizers" / sha256
    if target.is_dir():
        return target
    try:
        contents = {name: source.read_bytes(name) for name in FILES}
    except OSError as error:
        raise DataFault(f"{source.where()}: not a prepared tokenizer ({error})") from error
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent))
        try:
            for name, content in contents.items():
                (temporary / name).write_bytes(content)
            _check(temporary, source, sha256)
            temporary.rename(target)
        except OSError:
            if not target.is_dir():  # else another rank was first, with the same files
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def _check(folder: Path, source: Store, sha256: str) -> None:
    try:
        found = load_bpe(folder).sha256
    except ConfigError as error:
        raise DataFault(f"{source.where()}: not a prepared tokenizer ({error.problem})") from error
    if found != sha256:
        raise DataFault(f"{source.where()}: not the tokenizer that the manifest names")
