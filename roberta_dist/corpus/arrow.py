"""Sources `parquet` and `hf_dataset`: rows of Arrow columns become documents.

Both are read with pyarrow alone. Text is taken as bytes, since a column that says it holds UTF-8
may not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from roberta_dist.config.corpus import CorpusConfig
from roberta_dist.corpus.document import Document, cut_document, decode
from roberta_dist.corpus.extras import load_extra
from roberta_dist.corpus.files import match_paths, read_errors
from roberta_dist.errors import ConfigError, DataFault
from roberta_dist.units import MIB

PARQUET_SUFFIXES = (".parquet", ".pq")
BATCH_BYTES = 16 * MIB
MAX_BATCH_ROWS = 512
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def row_group_bytes(path: Path, text_field: str) -> list[int]:
    """Bytes of text in each row group of a parquet file, from its footer.

    Raises:
        ConfigError: pyarrow is not installed.
        DataFault: not a whole parquet file, or without the column.
    """
    with _open_parquet(path) as file:
        _check_column(path, file.schema_arrow, text_field, "corpus.text_field")
        metadata = file.metadata
        names = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        if text_field not in names:  # a nested column, refused when it is read
            return [group.total_byte_size for group in groups]
        column = names.index(text_field)
        return [group.column(column).total_uncompressed_size for group in groups]


def read_parquet(
    path: Path, config: CorpusConfig, limit: int, start: int, end: int | None
) -> Iterator[Document]:
    """One document a row of the row groups in [start, end), from the column `corpus.text_field`.

    Null is an empty document. One batch of about 16 MiB of rows is held.

    Raises:
        ConfigError: pyarrow is not installed.
        DataFault: an unreadable file, a missing column, or one that holds no text.
    """
    with _open_parquet(path) as file, _arrow_errors(path):
        _check_columns(path, file.schema_arrow, config)
        groups = range(start, file.num_row_groups if end is None else end)
        row = sum(file.metadata.row_group(i).num_rows for i in range(start))
        for group in groups:
            facts = file.metadata.row_group(group)
            share = BATCH_BYTES * facts.num_rows // max(1, facts.total_byte_size)
            for batch in file.iter_batches(
                batch_size=min(MAX_BATCH_ROWS, max(1, share)),
                row_groups=[group],
                columns=_columns(config),
                use_threads=False,
            ):
                yield from _documents(path, batch, row, config, limit)
                row += batch.num_rows


def find_datasets(paths: list[str], split: str | None) -> list[Path]:
    """The Arrow files of folders written by `save_to_disk`, in the order of their rows.

    Raises:
        ConfigError: no such folder, or `split` is not in it, or several are and none is named.
        DataFault: the folder's state.json is damaged.
    """
    folders = [folder for path in paths for folder in sorted(match_paths(path)) or [Path(path)]]
    return [file for folder in folders for file in _data_files(_split_folder(folder, split))]


def _split_folder(folder: Path, split: str | None) -> Path:
    if (folder / "state.json").is_file():
        return folder
    if not (folder / "dataset_dict.json").is_file():
        raise ConfigError(
            f"corpus.paths: {folder} holds no state.json and no dataset_dict.json",
            "give a folder written by Dataset.save_to_disk or DatasetDict.save_to_disk",
        )
    splits: list[str] = _read_json(folder / "dataset_dict.json")["splits"]
    chosen = splits[0] if split is None and len(splits) == 1 else split or ""
    if chosen not in splits or Path(chosen).name != chosen:
        raise ConfigError(
            f"corpus.split={split}: {folder} has the splits {splits}", "give corpus.split=NAME"
        )
    return folder / chosen


def _data_files(folder: Path) -> list[Path]:
    names = [entry["filename"] for entry in _read_json(folder / "state.json")["_data_files"]]
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise DataFault(
                f"{folder / 'state.json'}: names {name}, which is not a file of that folder",
                "save the dataset again",
            )
    return [folder / name for name in names]


def _read_json(path: Path) -> Any:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {**values}
    except (OSError, ValueError, TypeError) as error:
        raise DataFault(f"{path}: cannot be read ({error})", "save the dataset again") from error


def read_arrow(path: Path, config: CorpusConfig, limit: int) -> Iterator[Document]:
    """One document a row of an Arrow stream file, from the column `corpus.text_field`.

    Raises:
        ConfigError: pyarrow is not installed.
        DataFault: a file that is damaged or cut short, a missing column, or one without text.
    """
    pyarrow = load_extra("pyarrow", "corpus.source=hf_dataset")
    _check_end(path)
    row = 0
    with (
        _arrow_errors(path),
        pyarrow.memory_map(str(path)) as mapped,
        pyarrow.ipc.open_stream(mapped) as stream,
    ):
        _check_columns(path, stream.schema, config)
        for batch in stream:
            batch.validate(full=False)
            yield from _documents(path, batch.select(_columns(config)), row, config, limit)
            row += batch.num_rows


def _check_end(path: Path) -> None:
    """pyarrow takes a stream that was cut between two batches for a whole one."""
    with read_errors(path), open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - len(_END_OF_STREAM)))
        if file.read() != _END_OF_STREAM:
            raise DataFault(
                f"{path}: ends at byte {size} without the mark of the end of an Arrow stream",
                "it was cut short: save the dataset again",
            )


@contextmanager
def _arrow_errors(path: Path) -> Iterator[None]:
    """Turn pyarrow's errors into a DataFault that names the file."""
    arrow_errors = load_extra("pyarrow", "corpus.source").ArrowException
    try:
        yield
    except (arrow_errors, OSError) as error:
        raise DataFault(f"{path}: cannot be read ({error})", "repair or remove the file") from error


def _open_parquet(path: Path) -> Any:
    parquet = load_extra("pyarrow.parquet", "corpus.source=parquet")
    with _arrow_errors(path):
        return parquet.ParquetFile(path, page_checksum_verification=True, pre_buffer=False)


def _columns(config: CorpusConfig) -> list[str]:
    names = [config.text_field, config.language_field]
    return list(dict.fromkeys(name for name in names if name is not None))


def _check_column(path: Path, schema: Any, name: str, key: str) -> None:
    if schema.names.count(name) != 1:
        found = "no column" if name not in schema.names else "more than one column"
        raise DataFault(
            f"{path}: {found} {key}={name}; there are {schema.names[:20]}", f"give {key}=NAME"
        )


def _check_columns(path: Path, schema: Any, config: CorpusConfig) -> None:
    _check_column(path, schema, config.text_field, "corpus.text_field")
    if config.language_field is not None:
        _check_column(path, schema, config.language_field, "corpus.language_field")
    kind = schema.field(config.text_field).type
    value = getattr(kind, "value_type", kind) if str(kind).startswith("dictionary") else kind
    if str(value) not in (
        "string", "large_string", "string_view", "binary", "large_binary", "binary_view", "null"
    ):  # fmt: skip
        raise DataFault(
            f"{path}: column {config.text_field} holds {kind}, not text",
            "give corpus.text_field=NAME",
        )


def _documents(
    path: Path, batch: Any, row: int, config: CorpusConfig, limit: int
) -> Iterator[Document]:
    texts = batch.column(config.text_field)
    if str(texts.type).startswith("dictionary"):
        texts = texts.dictionary_decode()
    texts = texts.cast("large_binary")
    languages = None if config.language_field is None else batch.column(config.language_field)
    for place, raw in enumerate(texts.to_pylist()):
        language = None if languages is None else languages[place].as_py()
        clean, repaired = decode(b"" if raw is None else raw)
        name = f"{path}[{row + place}]"
        value = None if language is None else str(language)
        yield from cut_document(Document(name, clean, repaired, language=value), limit)
