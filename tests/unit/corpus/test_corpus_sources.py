"""Each source gives the same documents, whatever its container does to them; damage is said."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from roberta_dist.config.corpus import CorpusConfig, Source
from roberta_dist.corpus import arrow, extras, sources
from roberta_dist.corpus.document import Document
from roberta_dist.corpus.filters import Drop, drop_reason
from roberta_dist.corpus.sources import open_source
from roberta_dist.errors import ConfigError, DataFault

pytestmark = pytest.mark.unit

TEXTS = [
    "plain",
    "two\nlines",
    "CR\r\nLF",
    "a,b\t\"c\" 'd'",
    "NUL \0 in",
    "</s> <mask>",
    "",
    "é自 😀",
]
LANGUAGES = ["en", "de", "en", "en", "fr", "en", "en", "ja"]
PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


def documents(source: str, path: Path, **settings: Any) -> list[Document]:
    config = CorpusConfig(source=Source(source), paths=[str(path)], **settings)
    opened = open_source(config)
    assert [unit.number for unit in opened.units] == list(range(len(opened.units)))
    return [document for unit in opened.units for document in opened.documents(unit)]


def texts(source: str, path: Path, **settings: Any) -> list[str]:
    return [document.text for document in documents(source, path, **settings)]


def table(folder: Path, delimiter: str = ",") -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=delimiter)
    writer.writerow(["n", "body", "lang"])
    writer.writerows(zip(range(len(TEXTS)), TEXTS, LANGUAGES, strict=True))
    return b"\xef\xbb\xbf" + buffer.getvalue().encode()


def columns() -> pa.Table:
    return pa.table(
        {"n": range(len(TEXTS) + 1), "body": [*TEXTS, None], "lang": [*LANGUAGES, None]}
    )


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_csv(tmp_path: Path, suffix: str, delimiter: str) -> None:
    path = tmp_path / f"a.csv{suffix}"
    path.write_bytes(PACK[suffix](table(tmp_path, delimiter)))
    found = documents(
        "csv", path, text_field="body", delimiter=delimiter, language_field="lang", languages=["en"]
    )
    assert [d.text for d in found] == TEXTS and [d.language for d in found] == LANGUAGES
    assert [d.id.rsplit(":")[-1] for d in found[:4]] == ["2", "3", "5", "7"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\n", r"no column corpus\.text_field=text.*\['a', 'b'\]"),
        (b"text,text\n1,2\n", "more than one column"),
        (b"n,text\n1,one, two\n", r"a\.csv:2: 3 fields, the header has 2"),
        (b'n,text\n1,"open\n2,b\n', r"a\.csv:3: not a table"),
    ],
)
def test_csv_faults_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataFault, match=message):
        documents("csv", tmp_path)


def test_csv_quotes_may_be_text_and_bad_bytes_are_marked(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'n,text\n1,"open\n\n2,bad \xff\n3,good\n')
    found = documents("csv", tmp_path, quoted=False)
    assert [(d.text, d.repaired) for d in found] == [
        ('"open', False), ("bad \ufffd", True), ("good", False),
    ]  # fmt: skip
    (tmp_path / "a.csv").write_bytes(b"")
    assert documents("csv", tmp_path) == []


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "large_binary", "dict"])
def test_parquet(tmp_path: Path, kind: str) -> None:
    data = columns()
    body = data["body"]
    body = body.dictionary_encode() if kind == "dict" else body.cast(kind)
    pq.write_table(data.set_column(1, "body", body), tmp_path / "a.parquet", row_group_size=3)
    found = documents(
        "parquet", tmp_path, text_field="body", language_field="lang", languages=["en"]
    )
    assert [d.text for d in found] == [*TEXTS, ""]
    assert [d.language for d in found] == [*LANGUAGES, None]
    assert found[4].id.endswith("a.parquet[4]")


def test_parquet_units_are_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [f"{i} " * 50 for i in range(100)]
    pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet", row_group_size=7)
    monkeypatch.setattr(sources, "UNIT_BYTES", 3000)
    monkeypatch.setattr(arrow, "BATCH_BYTES", 500)
    config = CorpusConfig(source=Source.parquet, paths=[str(tmp_path)])
    units = open_source(config).units
    assert len(units) > 4 and units[1].start == units[0].end
    found = documents("parquet", tmp_path)
    assert [d.text for d in found] == values
    assert [d.id.rsplit("[")[-1] for d in found] == [f"{i}]" for i in range(100)]


def test_parquet_text_that_is_not_utf8(tmp_path: Path) -> None:
    raw = pa.array([b"good", b"bad \xff"], pa.binary())
    lying = pa.StringArray.from_buffers(2, raw.buffers()[1], raw.buffers()[2])
    pq.write_table(pa.table({"text": lying}), tmp_path / "a.parquet")
    assert [(d.text, d.repaired) for d in documents("parquet", tmp_path)] == [
        ("good", False), ("bad \ufffd", True),
    ]  # fmt: skip


def test_parquet_faults_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": [1], "body": ["x"]}), path)
    with pytest.raises(DataFault, match=r"a\.parquet: no column corpus\.text_field=text.*'body'"):
        documents("parquet", path)
    with pytest.raises(DataFault, match=r"column n holds int64, not text"):
        documents("parquet", path, text_field="n")
    with pytest.raises(DataFault, match=r"corpus\.language_field=lang"):
        documents("parquet", path, text_field="body", language_field="lang", languages=["en"])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataFault, match=r"a\.parquet: cannot be read"):
        documents("parquet", path)


def test_parquet_damage_inside_a_page_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"text": ["word " * 9 + str(i) for i in range(200)]}), path,
        write_page_checksum=True, use_dictionary=False, compression="none",
    )  # fmt: skip
    content = bytearray(path.read_bytes())
    content[content.index(b"word 100") + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataFault, match=r"a\.parquet"):
        documents("parquet", path)


def test_saved_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset(columns())
    data.save_to_disk(tmp_path / "one", num_shards=3)
    assert texts("hf_dataset", tmp_path / "one", text_field="body") == [*TEXTS, ""]
    both = datasets.DatasetDict({"train": data, "test": data.select([4, 0])})
    both.save_to_disk(tmp_path / "two")
    assert texts("hf_dataset", tmp_path / "two", text_field="body", split="test") == [
        TEXTS[4], TEXTS[0],
    ]  # fmt: skip
    for split in (None, "dev"):
        with pytest.raises(ConfigError, match=r"has the splits \['train', 'test'\]"):
            documents("hf_dataset", tmp_path / "two", text_field="body", split=split)
    with pytest.raises(ConfigError, match=r"no state\.json"):
        documents("hf_dataset", tmp_path)
    with pytest.raises(DataFault, match=r"no column corpus\.text_field=text"):
        documents("hf_dataset", tmp_path / "one")
    state = tmp_path / "one" / "state.json"
    outside = tmp_path / "outside.arrow"
    outside.write_bytes(next((tmp_path / "one").glob("*.arrow")).read_bytes())
    state.write_text(state.read_text().replace("data-00001-of-00003.arrow", "../outside.arrow"))
    with pytest.raises(DataFault, match="not a file of that folder"):
        documents("hf_dataset", tmp_path / "one", text_field="body")


def test_a_cut_arrow_stream_is_never_shorter(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    schema = pa.schema({"text": pa.string()})
    with pa.OSFile(str(folder / "x.arrow"), "wb") as file, pa.ipc.new_stream(file, schema) as out:
        for i in range(5):
            out.write_batch(pa.record_batch([[f"text {i}"] * 3], schema=schema))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "x.arrow"}]}))
    assert len(documents("hf_dataset", folder)) == 15
    whole = (folder / "x.arrow").read_bytes()
    for size in range(len(whole)):
        (folder / "x.arrow").write_bytes(whole[:size])
        with pytest.raises(DataFault, match=r"x\.arrow"):
            documents("hf_dataset", folder)


def test_webdataset_members(tmp_path: Path) -> None:
    lines = b"\n".join(json.dumps({"text": t}).encode() for t in TEXTS)
    members = {
        "0.txt": b"\xef\xbb\xbfbare", "0.png": b"png",
        "a/1.json": b'{"text": "in json"}',
        "2.json": b'{"lang": "de"}', "2.txt": b"with a side file",
        "3.part.jsonl": lines,
        "4.txt": b"bad \xff", "5.TXT": b"", "6.cls": b"1", "7.json": b'{"text": null}',
        "n" * 150 + ".txt": b"long name",
    }  # fmt: skip
    found = documents("webdataset", tar(tmp_path / "a.tar", members))
    assert [d.text for d in found if not d.ignored] == [
        "bare", "in json", "with a side file", *TEXTS, "bad \ufffd", "", "", "long name",
    ]  # fmt: skip
    assert sum(d.ignored for d in found) == 2
    with gzip.open(tmp_path / "b.tar.gz", "wb") as file:
        file.write((tmp_path / "a.tar").read_bytes())
    packed = documents("webdataset", tmp_path / "b.tar.gz")
    assert [d.text for d in packed] == [d.text for d in found]


def test_webdataset_in_zstandard_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.zst"
    path.write_bytes(zstandard.compress(tar(tmp_path / "a.tar", {"1.txt": b"x"}).read_bytes()))
    with pytest.raises(DataFault, match=r"(?s)a\.tar\.zst.*decompress"):
        documents("webdataset", path)


def test_a_truncated_tar_in_gzip_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    members = {f"{i}.txt": b"%d" % i * 5000 for i in range(9)}
    whole = tar(tmp_path / "a.tar", members).read_bytes()
    for content in (gzip.compress(whole)[:-40], gzip.compress(whole[: 3 * 5632])):
        path.write_bytes(content)
        with pytest.raises(DataFault, match=r"a\.tar\.gz"):
            documents("webdataset", path)


def test_webdataset_language(tmp_path: Path) -> None:
    asked = {"language_field": "lang", "languages": ["de"]}
    members = {"1.json": b'{"lang": "de"}', "1.txt": b"x", "2.json": b'{"lang": 7, "text": "y"}'}
    found = documents("webdataset", tar(tmp_path / "a.tar", members), **asked)
    assert [(d.text, d.language) for d in found] == [("x", "de"), ("y", "7")]
    with pytest.raises(DataFault, match=r"a\.tar/1\.txt.*language_field=lang"):
        documents("webdataset", tar(tmp_path / "a.tar", {"1.txt": b"x"}), **asked)


def test_a_damaged_tar_is_never_shorter(tmp_path: Path) -> None:
    """Cut at every block boundary and beside it, and with a bit flipped in every header."""
    members = {f"{i}.txt": bytes([97 + i]) * (512 * i + (i % 2)) for i in range(4)}
    path = tar(tmp_path / "a.tar", members)
    whole = path.read_bytes()
    end = sum(512 + -(-len(content) // 512) * 512 for content in members.values())
    assert len(documents("webdataset", path)) == 4
    for block in range(0, end + 1024, 512):
        for size in (block, block + 1, block + 511):
            if size < end + 1024:
                path.write_bytes(whole[:size])
                with pytest.raises(DataFault, match=r"a\.tar.*byte \d+"):
                    documents("webdataset", path)
    path.write_bytes(whole[: end - 1000])
    with pytest.raises(DataFault, match=r"byte \d+ \(3\.txt has 1048 of 1537 bytes\)"):
        documents("webdataset", path)
    offset = 0
    for content in members.values():
        for place in (0, 100, 130, 150, 257):
            broken = bytearray(whole)
            broken[offset + place] ^= 1
            path.write_bytes(broken)
            with pytest.raises(DataFault, match=r"a\.tar"):
                documents("webdataset", path)
        path.write_bytes(whole[:offset] + bytes(512) + whole[offset + 512 :])
        with pytest.raises(DataFault, match=r"a\.tar"):
            documents("webdataset", path)
        offset += 512 + -(-len(content) // 512) * 512
    path.write_bytes(whole + whole)
    with pytest.raises(DataFault, match="after the end of the archive"):
        documents("webdataset", path)


def test_a_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").touch()

    def missing(module: str) -> Any:
        raise ModuleNotFoundError(f"No module named '{module}'")

    monkeypatch.setattr(extras.importlib, "import_module", missing)
    with pytest.raises(
        ConfigError, match=r"(?s)corpus\.source=parquet: needs pyarrow.*\[sources\]"
    ):
        documents("parquet", tmp_path)


def test_filters_say_why() -> None:
    config = CorpusConfig(
        source=Source.jsonl, paths=["x"], min_characters=5, language_field="l", languages=["en"]
    )
    asked = {
        Document("a", "long enough", language="en"): None,
        Document("a", "four", language="en"): Drop.too_short,
        Document("a#1", "four", part=1, language="en"): None,
        Document("a", " \n\u3000", language="en"): Drop.empty,
        Document("a", "long enough", language="de"): Drop.other_language,
        Document("a", "long enough"): Drop.other_language,
        Document("a", "", ignored=True): Drop.ignored,
    }
    assert {document: drop_reason(document, config) for document in asked} == asked
