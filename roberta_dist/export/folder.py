"""A folder that is either the old one or the whole new one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from roberta_dist.errors import ConfigError
from roberta_dist.runtime.files import fsync_folder, storage_errors


def check_replaceable(output: Path, ours: Collection[str]) -> None:
    """Refuse to replace anything but a folder that holds only names in `ours`.

    Raises:
        ConfigError: `output` is a file, or holds something that an export does not write.
    """
    if not output.exists():
        return
    if not output.is_dir():
        raise ConfigError(f"output={output}: is not a folder", "give another output=")
    foreign = sorted(path.name for path in output.iterdir() if path.name not in ours)
    if foreign:
        raise ConfigError(
            f"output={output}: holds {foreign[0]}, which no export wrote, and would be replaced",
            "give another output=, or move that file away",
        )


@contextmanager
def replaced_folder(output: Path, ours: Collection[str]) -> Iterator[Path]:
    """A temporary folder beside `output` that becomes it if the body succeeds, else vanishes.

    Raises:
        ConfigError: see `check_replaceable`.
        StorageError: no space, or no permission.
    """
    output = output.resolve()
    check_replaceable(output, ours)
    temporary = output.with_name(f".{output.name}.tmp-{os.getpid()}")
    previous = output.with_name(f".{output.name}.old-{os.getpid()}")
    with storage_errors(output):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            if output.exists():
                os.rename(output, previous)
            os.rename(temporary, output)
            fsync_folder(output.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            if previous.exists() and not output.exists():
                os.rename(previous, output)
            shutil.rmtree(previous, ignore_errors=True)
