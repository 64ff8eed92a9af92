"""`prepare` from every source, end to end: the same hostile documents come back from the shards."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from tokenizers import Tokenizer

from roberta_dist.config.load import compose
from roberta_dist.config.roots import PrepareConfig
from roberta_dist.corpus.manifest import read_manifest
from roberta_dist.corpus.pack import decode_pack
from roberta_dist.corpus.prepare import prepare
from roberta_dist.errors import DataFault

pytestmark = pytest.mark.unit

SMALL = [
    "corpus.pack_mib=0.00390625", "corpus.shard_mib=0.03125", "corpus.held_out_fraction=0.1",
    "tokenizer.vocab_size=400", "progress=false", "corpus.workers=1",
]  # fmt: skip
KEPT = [
    *(f"Document {i} of some; it says {i * 37 % 101}. And more." for i in range(150)),
    "two\nlines, and\r\nCR LF", "NUL \0 inside", "</s> and <mask> stay text", "é自然。言語 😀",
    "a \"quoted\" 'text', with\ttab", "long " * 3000,
]  # fmt: skip
EMPTY: list[str | None] = ["", " \n", None]
BAD = b"bad \xff\xfe bytes"
REPAIRED = "bad \ufffd\ufffd bytes"


def as_csv(folder: Path, texts: list[str | None], suffix: str, delimiter: str) -> Path:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=delimiter)
    writer.writerow(["id", "text"])
    writer.writerows(enumerate(texts))
    raw = b"\xef\xbb\xbf" + buffer.getvalue().encode() + b"9" + delimiter.encode() + BAD + b"\r\n"
    path = folder / f"a{suffix}"
    path.write_bytes(gzip.compress(raw) if suffix.endswith(".gz") else raw)
    return path


def as_jsonl(folder: Path, texts: list[str | None]) -> Path:
    lines = [json.dumps({"text": text, "n": 1}).encode() for text in texts]
    raw = b"\xef\xbb\xbf" + b"\r\n\r\n".join([*lines, b'{"text": "' + BAD + b'"}'])
    (folder / "a.jsonl.zst").write_bytes(zstandard.compress(raw))
    (folder / "empty.jsonl").touch()
    return folder


def arrow_table(texts: list[str | None]) -> pa.Table:
    raw = pa.array([None if text is None else text.encode() for text in texts] + [BAD], pa.binary())
    lying = pa.StringArray.from_buffers(
        len(raw), raw.buffers()[1], raw.buffers()[2], raw.buffers()[0]
    )
    return pa.table({"n": range(len(raw)), "text": lying})


def as_parquet(folder: Path, texts: list[str | None]) -> Path:
    table = arrow_table(texts)
    pq.write_table(table.slice(0, 50), folder / "a.parquet", row_group_size=7)
    pq.write_table(table.slice(50), folder / "b.parquet", row_group_size=20)
    pq.write_table(table.slice(0, 0), folder / "empty.parquet")
    return folder


def as_dataset(folder: Path, texts: list[str | None]) -> Path:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset(arrow_table(texts))
    splits = datasets.DatasetDict({"train": data, "test": data.select(range(3))})
    splits.save_to_disk(folder / "d", num_shards={"train": 3, "test": 1})
    return folder / "d"


def as_tars(folder: Path, texts: list[str | None]) -> Path:
    def write(path: Path, members: list[tuple[str, bytes]]) -> None:
        with tarfile.open(path, "w") as tar:
            for name, content in members:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))

    plain = [text for text in texts if text is not None]
    first = [(f"{i}.txt", text.encode()) for i, text in enumerate(plain[:40])]
    second = [
        (f"x/{i}.json", json.dumps({"text": text}).encode()) for i, text in enumerate(plain[40:80])
    ]
    lines = "\n".join(json.dumps({"text": text}) for text in [*plain[80:], None])
    write(folder / "a.tar", [("0.jpg", b"jpeg"), *first, *second])
    write(folder / "b.tar", [("all.jsonl", lines.encode()), ("bad.txt", BAD), ("bad.cls", b"3")])
    write(folder / "empty.tar", [])
    return folder


def as_lines(folder: Path, texts: list[str | None]) -> Path:
    raw = "\n".join(text for text in texts if text is not None).encode()
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbf" + raw + b"\n" + BAD)
    (folder / "empty.txt").touch()
    return folder


SOURCES: dict[str, tuple[Callable[[Path, list[str | None]], Path], list[str]]] = {
    "csv": (lambda folder, texts: as_csv(folder, texts, ".csv.gz", ","), []),
    "tsv": (lambda folder, texts: as_csv(folder, texts, ".tsv", "\t"), []),
    "jsonl": (as_jsonl, []),
    "parquet": (as_parquet, []),
    "hf_dataset": (as_dataset, ["corpus.split=train"]),
    "webdataset": (as_tars, []),
}


def run(source: str, path: Path, output: Path, *overrides: str) -> dict[str, Any]:
    arguments = [
        f"corpus={source}",
        f"corpus.paths=[{path}]",
        f"output={output}",
        *SMALL,
        *overrides,
    ]
    assert prepare(compose("prepare", PrepareConfig, arguments)) == 0
    report: dict[str, Any] = json.loads((output / "prepare.json").read_text())
    return report


def decoded(corpus: Path) -> tuple[list[str], list[str]]:
    """Documents, whole, and sentences of both splits, from the packs."""
    tokenizer = Tokenizer.from_file(str(corpus / "tokenizer" / "tokenizer.json"))

    def spell(tokens: np.ndarray, ends: np.ndarray) -> list[str]:
        parts = np.split(tokens, ends[:-1])
        return [tokenizer.decode(part.tolist(), skip_special_tokens=False) for part in parts]

    documents: list[str] = []
    sentences: list[str] = []
    for split in ("train", "held_out"):
        manifest = read_manifest(corpus / split)
        for row in manifest.packs:
            raw = (corpus / split / manifest.shards[row["shard"]].name).read_bytes()
            payload = raw[int(row["offset"]) : int(row["offset"]) + int(row["length"])]
            pack = decode_pack(payload, "")
            ends = np.cumsum(pack.sentence_lengths, dtype=np.int64)
            found = spell(pack.tokens, ends[pack.document_ends - 1])
            if pack.continues_previous:
                documents[-1] += found.pop(0)
            documents += found
            sentences += spell(pack.tokens, ends)
    return documents, sentences


@pytest.mark.parametrize("source", SOURCES)
def test_hostile_documents_come_back(tmp_path: Path, source: str) -> None:
    write, overrides = SOURCES[source]
    (tmp_path / "s").mkdir()
    path = write(tmp_path / "s", [*KEPT, *EMPTY])
    report = run(source, path, tmp_path / "c", *overrides)
    documents, _ = decoded(tmp_path / "c")
    assert Counter(documents) == Counter([*KEPT, REPAIRED])
    read = report["read"]
    assert read["empty"] == len(EMPTY) and read["repaired"] == 1
    assert read["documents"] == len(KEPT) + len(EMPTY) + 1
    assert read["ignored"] == (2 if source == "webdataset" else 0)
    for split, facts in report["splits"].items():
        page = (tmp_path / "c" / "corpus.html").read_text(encoding="utf-8")
        assert split in page and f"{facts['tokens']:,}" in page


def test_lines_are_documents(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    kept = [text for text in KEPT if "\n" not in text]
    report = run("lines", as_lines(tmp_path / "s", [*kept, "", " "]), tmp_path / "c")
    documents, _ = decoded(tmp_path / "c")
    assert Counter(documents) == Counter([*kept, REPAIRED])
    assert report["read"]["documents"] == len(kept) + 1


def test_filters_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": f"English text number {i}", "lang": "en"} for i in range(60)]
    rows += [{"text": f"Deutscher Text {i}", "lang": "de"} for i in range(7)]
    rows += [{"text": f"t{i}", "lang": "en"} for i in range(5)]
    rows += [{"text": "word " * 3000, "lang": "en"}, {"text": "no language", "lang": None}]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    overrides = [
        "corpus.language_field=lang", "corpus.languages=[en]", "corpus.min_characters=5",
        "corpus.max_document_mib=0.00390625", "corpus.deduplicate=false",
    ]  # fmt: skip
    read = run("jsonl", path, tmp_path / "c", *overrides)["read"]
    assert read["other_language"] == 8 and read["too_short"] == 5 and read["cut"] == 3
    assert read["documents"] == len(rows) + 3
    said = capsys.readouterr().out
    assert "kept + 5 too short + 8 in other languages\n" in said
    assert "3 cuts of over-long ones" in said
    documents, _ = decoded(tmp_path / "c")
    assert (
        sum(text.count("word ") for text in documents)
        + sum(text.endswith("word") for text in documents)
        == 3000
    )
    with path.open("a") as file:
        file.write('\n{"text": "the field is missing"}')
    with pytest.raises(DataFault, match=r"a\.jsonl:75.*language_field=lang"):
        run("jsonl", path, tmp_path / "d", *overrides)


def test_the_splitter_changes_sentences_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in KEPT))
    by_line = run("jsonl", path, tmp_path / "line")
    split = run("jsonl", path, tmp_path / "split", "corpus.sentences=splitter")
    documents, lines = decoded(tmp_path / "line")
    same, sentences = decoded(tmp_path / "split")
    assert Counter(documents) == Counter(same)
    assert by_line["splits"]["train"]["tokens"] == split["splits"]["train"]["tokens"]
    assert sentences.count(" And more.") == 150
    assert " And more." not in lines
    assert split["splits"]["train"]["sentences"] > by_line["splits"]["train"]["sentences"]
