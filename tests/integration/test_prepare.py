"""`prepare` as a user meets it: three sources, kills, settings, faults."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from roberta_dist.config.load import compose
from roberta_dist.config.roots import PrepareConfig
from roberta_dist.corpus import encoding
from roberta_dist.corpus.bpe import Bpe, train_bpe
from roberta_dist.corpus.manifest import read_manifest
from roberta_dist.corpus.pack import decode_pack
from roberta_dist.corpus.packing import full_sentence_bounds
from roberta_dist.corpus.phases import LONGEST_TRAINING_PIECE
from roberta_dist.corpus.prepare import prepare
from roberta_dist.errors import ConfigError, DataFault, StorageError

pytestmark = pytest.mark.unit

SMALL = [
    "corpus.pack_mib=0.00390625", "corpus.shard_mib=0.03125", "corpus.held_out_fraction=0.1",
    "tokenizer.vocab_size=400", "progress=false", "corpus.workers=1",
]  # fmt: skip
LONG = "\n".join(f"A long document, sentence {i} of many." for i in range(800))


def settings(source: str, paths: Path | str, output: Path, *overrides: str) -> list[str]:
    return [f"corpus={source}", f"corpus.paths=[{paths}]", f"output={output}", *SMALL, *overrides]


def run(arguments: list[str]) -> int:
    return prepare(compose("prepare", PrepareConfig, arguments))


def process(arguments: list[str]) -> subprocess.Popen[bytes]:
    code = (
        "import sys; from roberta_dist.config.load import compose; "
        "from roberta_dist.config.roots import PrepareConfig; "
        "from roberta_dist.corpus.prepare import prepare; "
        "sys.exit(prepare(compose('prepare', PrepareConfig, sys.argv[1:])))"
    )
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL)


def contents(folder: Path) -> dict[str, str]:
    """Relative path → hash of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def decoded(split: Path) -> list[str]:
    """Every document, from the packs."""
    tokenizer = Tokenizer.from_file(str(split.parent / "tokenizer" / "tokenizer.json"))
    manifest = read_manifest(split)
    documents: list[list[int]] = []
    for row in manifest.packs:
        raw = (split / manifest.shards[row["shard"]].name).read_bytes()
        payload = raw[int(row["offset"]) : int(row["offset"]) + int(row["length"])]
        assert zlib.crc32(payload) == row["crc32"]
        pack = decode_pack(payload, str(split))
        assert len(full_sentence_bounds(pack, 128)) == row["blocks_128"]
        assert len(full_sentence_bounds(pack, 512)) == row["blocks_512"]
        ends = np.cumsum(pack.sentence_lengths, dtype=np.int64)[pack.document_ends - 1]
        pieces = [piece.tolist() for piece in np.split(pack.tokens, ends[:-1])]
        if pack.continues_previous:
            documents[-1] += pieces.pop(0)
        documents += pieces
    return [tokenizer.decode(ids, skip_special_tokens=False) for ids in documents]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Distinct texts: short ones, one longer than a pack, odd ones."""
    plain = [
        f"Document {i}.\n" + f"It speaks of {i * 37 % 101} things. " * (i % 9) for i in range(1500)
    ]
    return [
        *(text.strip() for text in plain),
        LONG,
        "NUL \0 inside",
        "</s> and <mask>",
        "自然语言。",
    ]


@pytest.fixture(scope="module")
def jsonl(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    path = tmp_path_factory.mktemp("source") / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, jsonl: Path) -> Path:
    output = tmp_path_factory.mktemp("corpus") / "reference"
    assert run(settings("jsonl", jsonl, output)) == 0
    return output


def test_every_document_comes_back_exactly_once(corpus: Path, texts: list[str]) -> None:
    train, held_out = decoded(corpus / "train"), decoded(corpus / "held_out")
    assert sorted(train + held_out) == sorted(texts)
    assert 100 <= len(held_out) <= 200
    assert train != [text for text in texts if text in set(train)]  # shuffled
    report = json.loads((corpus / "prepare.json").read_text())
    assert report["splits"]["train"]["shards"] > 2
    assert sum(split["text_bytes"] for split in report["splits"].values()) == sum(
        len(text.encode()) for text in texts
    )
    assert sorted(path.name for path in corpus.iterdir()) == [
        "corpus.html", "held_out", "prepare.json", "tokenizer", "train",
    ]  # fmt: skip


def test_unigram_entropy_is_that_of_the_tokens(corpus: Path) -> None:
    manifest = read_manifest(corpus / "held_out")
    counts = np.zeros(manifest.vocab_size)
    for shard in manifest.shards:
        with tarfile.open(corpus / "held_out" / shard.name) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                counts += np.bincount(decode_pack(file.read(), "").tokens, minlength=len(counts))
    shares = counts[counts > 0] / counts.sum()
    assert counts.sum() == manifest.tokens
    assert manifest.unigram_entropy == pytest.approx(-(shares * np.log(shares)).sum(), rel=1e-12)


def test_webdataset_and_tar_read_the_shards(corpus: Path) -> None:
    import webdataset

    manifest = read_manifest(corpus / "train")
    urls = sorted(glob.glob(str(corpus / "train" / "*.tar")))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(samples) == len(manifest.packs)
    assert [zlib.crc32(sample["tok"]) for sample in samples] == manifest.packs["crc32"].tolist()
    names = subprocess.run(["tar", "tf", urls[0]], capture_output=True, text=True, check=True)
    assert names.stdout.split()[0] == "00000000.tok"


def test_workers_do_not_change_the_output(corpus: Path, jsonl: Path, tmp_path: Path) -> None:
    assert run(settings("jsonl", jsonl, tmp_path / "c", "corpus.workers=3")) == 0
    assert contents(tmp_path / "c") == contents(corpus)


MOMENTS = {
    "while reading": ".prepare/parts/.*.text.*",
    "after reading": ".prepare/parts/part-00000.json",
    "with the tokenizer half written": "tokenizer/tokenizer.json",
    "after the first shard": ".prepare/done/*.npz",
    "after a held-out shard": ".prepare/done/held_out-*.npz",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_started_again(corpus: Path, jsonl: Path, tmp_path: Path, moment: str) -> None:
    arguments = settings("jsonl", jsonl, tmp_path / "c", "corpus.workers=2")
    killed = process(arguments)
    deadline = time.monotonic() + 60
    while not glob.glob(str(tmp_path / "c" / MOMENTS[moment])) and killed.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    run(settings("jsonl", jsonl, tmp_path / "c"))
    assert contents(tmp_path / "c") == contents(corpus)


def test_complete_shards_are_not_encoded_again(
    jsonl: Path, tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = settings("jsonl", jsonl, tmp_path / "c")
    write, written = encoding.write_shard, []

    def failing(path: Path, packs: object) -> object:
        if len(written) == 2:
            raise StorageError("no space")
        written.append(path.name)
        return write(path, packs)  # type: ignore[arg-type]

    monkeypatch.setattr(encoding, "write_shard", failing)
    with pytest.raises(StorageError):
        run(arguments)
    first = [*written]
    (tmp_path / "c/train/.shard-000002.tar.tmp-1").write_bytes(b"half a shard of a killed process")
    monkeypatch.setattr(
        encoding, "write_shard", lambda p, q: (written.append(p.name), write(p, q))[1]
    )
    run(arguments)
    assert (
        written[:2] == first and written.count(first[0]) <= 2
    )  # a held-out shard may share a name
    report = json.loads((corpus / "prepare.json").read_text())["splits"]
    assert len(written) == report["train"]["shards"] + report["held_out"]["shards"]
    assert contents(tmp_path / "c") == contents(corpus)


def test_a_changed_source_is_read_again(texts: list[str], tmp_path: Path) -> None:
    source = tmp_path / "t.jsonl"
    source.write_text("\n".join(json.dumps({"text": text}) for text in texts[:300]))
    arguments = settings("jsonl", source, tmp_path / "c")
    killed = process(arguments)
    while not (tmp_path / "c/.prepare/parts/part-00000.json").exists() and killed.poll() is None:
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    source.write_text("\n".join(json.dumps({"text": text}) for text in texts[:301]))
    if (tmp_path / "c/prepare.json").exists():
        pytest.skip("it was complete before the signal")
    run(arguments)
    assert sorted(decoded(tmp_path / "c/train") + decoded(tmp_path / "c/held_out")) == sorted(
        texts[:301]
    )


def test_a_complete_output_is_left_alone(
    corpus: Path, jsonl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    assert run(settings("jsonl", jsonl, corpus, "corpus.workers=7")) == 0
    said = capsys.readouterr().out
    assert "left alone" in said and "unigram entropy" in said
    assert before == {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    with pytest.raises(ConfigError, match=r"corpus\.held_out_salt=roberta_dist.*other"):
        run(settings("jsonl", jsonl, corpus, "corpus.held_out_salt=other"))


def test_damage_to_a_complete_output_is_said(jsonl: Path, tmp_path: Path) -> None:
    arguments = settings("jsonl", jsonl, tmp_path / "c")
    run(arguments)
    (tmp_path / "c/train/shard-000001.tar").write_bytes(b"short")
    with pytest.raises(DataFault, match="shard-000001"):
        run(arguments)


def test_duplicates_empty_and_invalid_are_counted(tmp_path: Path) -> None:
    body = b"same text\n\nsame   text\n\nother %d \xff\n\n"
    source = tmp_path / "t.txt"
    source.write_bytes(b"".join(body % i for i in range(60)))
    run(settings("text", source, tmp_path / "once"))
    report = json.loads((tmp_path / "once/prepare.json").read_text())
    assert report["read"]["documents"] == 180 and report["read"]["repaired"] == 60
    assert sum(split["documents"] for split in report["splits"].values()) == 61
    assert sum(split["duplicates"] for split in report["splits"].values()) == 119
    run(settings("text", source, tmp_path / "all", "corpus.deduplicate=false"))
    report = json.loads((tmp_path / "all/prepare.json").read_text())
    assert sum(split["documents"] for split in report["splits"].values()) == 180
    # Copies of a text are on one side, whether or not they are kept.
    train, held_out = (
        {" ".join(text.split()) for text in decoded(tmp_path / "all" / split)}
        for split in ("train", "held_out")
    )
    assert train and held_out and not train & held_out


def test_text_files_whole_and_an_empty_one(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"s/{number % 3}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"s/{number % 3}/{number}.txt").write_text(f"file {number}\n\nsecond part\n")
    (tmp_path / "s/empty.txt").touch()
    run(settings("text", tmp_path / "s", tmp_path / "c", "corpus.document=file"))
    report = json.loads((tmp_path / "c/prepare.json").read_text())
    nonzero = {key: count for key, count in report["read"].items() if count}
    assert nonzero.keys() == {"documents", "empty", "text_bytes", "train", "held_out"}
    assert (nonzero["documents"], nonzero["empty"]) == (41, 1)
    assert sorted(decoded(tmp_path / "c/train") + decoded(tmp_path / "c/held_out")) == sorted(
        f"file {number}\n\nsecond part\n" for number in range(40)
    )


def test_the_tokenizer_never_trains_on_endless_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s/endless.txt").write_text("y" * 200_000 + "\n\n" + " " * 200_000 + "x")
    (tmp_path / "s/plain.txt").write_text("\n\n".join(f"document {i}" for i in range(400)))
    seen: list[int] = []

    def train(texts: Iterator[str], vocab_size: int) -> Bpe:
        kept = list(texts)
        seen.extend(len(text.encode()) for text in kept)
        return train_bpe(iter(kept), vocab_size)

    monkeypatch.setattr("roberta_dist.corpus.phases.train_bpe", train)
    run(settings("text", tmp_path / "s", tmp_path / "c"))
    report = json.loads((tmp_path / "c/prepare.json").read_text())
    assert report["read"]["documents"] == 402
    assert sum(seen) > 300_000 and max(seen) <= LONGEST_TRAINING_PIECE


def test_embedded_documentation_without_importing_anything(tmp_path: Path) -> None:
    arguments = [f"output={tmp_path / 'c'}", *SMALL, "corpus.max_mib=0.3"]
    assert run(arguments) == 0
    report = json.loads((tmp_path / "c/prepare.json").read_text())
    assert 0.3 * 2**20 <= report["read"]["text_bytes"] < 0.6 * 2**20
    assert any("assert" in text for text in decoded(tmp_path / "c/train"))


def test_a_given_tokenizer_is_used(corpus: Path, jsonl: Path, tmp_path: Path) -> None:
    given = corpus / "tokenizer"
    run(settings("jsonl", jsonl, tmp_path / "c", f"tokenizer.path={given}"))
    assert contents(tmp_path / "c/tokenizer") == contents(given)
    assert contents(tmp_path / "c/train") == contents(corpus / "train")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["corpus.paths=[{empty}]"], "0 documents"),
        (["corpus.held_out_fraction=1e-12"], r"held_out_fraction=1e-12.*0 held out"),
        (["tokenizer.path={empty}"], "not a byte-level BPE"),
        (["corpus.pack_mib=0.0001", "corpus.shard_mib=1"], "tokens in a pack"),
        (["corpus.paths=[{empty}/none-*.jsonl]"], "none-"),
    ],
)
def test_impossible_settings(
    jsonl: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    (tmp_path / "empty.jsonl").write_text('{"text": " \\n"}\n\n')
    filled = [text.format(empty=tmp_path / "empty.jsonl") for text in overrides]
    with pytest.raises(ConfigError, match=message):
        run(settings("jsonl", jsonl, tmp_path / "c", *filled))


def test_folders_that_are_not_ours_are_not_touched(jsonl: Path, tmp_path: Path) -> None:
    (tmp_path / "c/train").mkdir(parents=True)
    (tmp_path / "c/train/mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="holds train"):
        run(settings("jsonl", jsonl, tmp_path / "c"))
    assert (tmp_path / "c/train/mine.txt").read_text() == "keep"
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file"):
        run(settings("jsonl", jsonl, tmp_path / "file" / "c"))


def test_a_second_prepare_is_kept_out(jsonl: Path, tmp_path: Path) -> None:
    from roberta_dist.corpus.workfolder import locked

    with (
        locked(tmp_path / "c", exclusive=False),
        pytest.raises(ConfigError, match="another prepare"),
    ):
        run(settings("jsonl", jsonl, tmp_path / "c"))


def test_a_full_disk_is_said(jsonl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="no space left"):
        run(settings("jsonl", jsonl, tmp_path / "c"))
