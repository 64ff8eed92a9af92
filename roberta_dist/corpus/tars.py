"""Source `webdataset`: `.txt`, `.json` and `.jsonl` members of tar shards become documents.

`tarfile` takes a damaged or missing header after the first member for the end of the archive; here
the end must be where a tar's end-of-archive mark is, so nothing is ever silently shorter.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from roberta_dist.config.corpus import CorpusConfig
from roberta_dist.corpus.document import Document, cut_document, decode
from roberta_dist.corpus.files import (
    BYTE_ORDER_MARK,
    MAX_RECORD_BYTES,
    open_binary,
    read_errors,
)
from roberta_dist.corpus.text import json_document, json_language, json_object
from roberta_dist.errors import DataFault
from roberta_dist.units import MIB, human_bytes

TAR_SUFFIXES = (".tar", ".tgz")
_READ_SUFFIXES = ("txt", "json", "jsonl")
_BLOCK = 512
_END = bytes(2 * _BLOCK)
Sample = dict[str, tuple[str, bytes]]
"""suffix → (member name, contents) of consecutive members with one key."""


def read_tar(path: Path, config: CorpusConfig, limit: int) -> Iterator[Document]:
    """Documents of a tar: one a sample for `.txt` and `.json`, one a line for `.jsonl`.

    A sample is a run of members with one key, the name up to the first dot of its last part. Where
    it has both `.txt` and `.json`, the text is the former and the language is in the latter.
    Members with other suffixes come as `ignored`.

    Raises:
        DataFault: a tar that is cut short or damaged, with the offset; a member without the fields.
    """
    sample: Sample = {}
    current = ""
    for name, content in _members(path):
        key, suffix = _split_name(name)
        if content is None:
            yield Document(f"{path}/{name}", "", ignored=True)
            continue
        if key != current or suffix in sample:
            yield from _documents(path, sample, config, limit)
            sample = {}
        current = key
        sample[suffix] = (name, content)
    yield from _documents(path, sample, config, limit)


def _split_name(name: str) -> tuple[str, str]:
    """Key and last suffix."""
    path = PurePosixPath(name)
    stem, _, suffixes = path.name.partition(".")
    return str(path.with_name(stem or "_")), suffixes.rpartition(".")[2].lower()


def _documents(path: Path, sample: Sample, config: CorpusConfig, limit: int) -> Iterator[Document]:
    if "txt" in sample:
        name, content = sample["txt"]
        text, repaired = decode(content.removeprefix(BYTE_ORDER_MARK))
        language = None
        if config.language_field is not None:
            side, described = sample.get("json", (f"{name} without a .json member", b"{}"))
            values, _ = json_object(f"{path}/{side}", described)
            language = json_language(f"{path}/{side}", values, config.language_field)
        document = Document(f"{path}/{name}", text, repaired, language=language)
        yield from cut_document(document, limit)
    elif "json" in sample:
        yield from _from_json(path, *sample["json"], config, limit)
    if "jsonl" in sample:
        name, content = sample["jsonl"]
        for number, line in enumerate(content.split(b"\n"), start=1):
            if line.strip():
                yield from _from_json(path, f"{name}:{number}", line, config, limit)


def _from_json(
    path: Path, name: str, raw: bytes, config: CorpusConfig, limit: int
) -> Iterator[Document]:
    raw = raw.removeprefix(BYTE_ORDER_MARK)
    document = json_document(f"{path}/{name}", raw, config.text_field, config.language_field)
    yield from cut_document(document, limit)


def _members(path: Path) -> Iterator[tuple[str, bytes | None]]:
    """(name, contents) of every regular member; None for suffixes that are not read."""
    if path.suffix.lower() == ".zst":
        raise DataFault(f"{path}: a tar within zstandard is not read", "decompress the file")
    with read_errors(path), closing(open_binary(path)) as file:
        try:
            tar = tarfile.TarFile(fileobj=file, mode="r")
        except tarfile.TarError as error:
            raise _fault(path, 0, str(error)) from error
        while True:
            offset = tar.offset
            try:
                member = tar.next()
            except tarfile.TarError as error:
                raise _fault(path, offset, str(error)) from error
            if member is None:
                break
            tar.members = []  # type: ignore[attr-defined]  # else every header stays in memory
            if member.isreg():
                name = member.name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
                wanted = _split_name(name)[1] in _READ_SUFFIXES
                yield name, _content(path, file, member) if wanted else None
        _check_end(path, file, tar.offset)


def _content(path: Path, file: BinaryIO, member: tarfile.TarInfo) -> bytes:
    if member.size > MAX_RECORD_BYTES:
        raise DataFault(
            f"{path}/{member.name}: {human_bytes(member.size)} in one member",
            f"at most {human_bytes(MAX_RECORD_BYTES)} can be held: use smaller members, or corpus=text",
        )
    file.seek(member.offset_data)
    content = file.read(member.size)
    if len(content) != member.size:
        raise _fault(
            path,
            member.offset_data + len(content),
            f"{member.name} has {len(content)} of {member.size} bytes",
        )
    return content


def _check_end(path: Path, file: BinaryIO, offset: int) -> None:
    """Two zero blocks end an archive, and only zeros may follow."""
    file.seek(offset)
    mark = file.read(len(_END))
    if mark != _END:
        raise _fault(path, offset, "no end-of-archive mark, and no member that can be read")
    while rest := file.read(MIB):
        if rest.strip(b"\0"):
            raise _fault(path, offset, "data after the end of the archive")


def _fault(path: Path, offset: int, problem: str) -> DataFault:
    return DataFault(
        f"{path}: damaged or cut short at byte {offset} ({problem})",
        "fetch or write the file again, or remove it",
    )
