"""Prepare dealt to tasks: real processes at once, in any number, killed, out of order."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from prepare_support import (
    SMALL,
    contents,
    finish,
    kill_and_rerun,
    run_in_tasks,
    start,
    write_source,
)
from tokenizers import Tokenizer

from roberta_dist.config.load import compose
from roberta_dist.config.roots import PrepareConfig
from roberta_dist.corpus.manifest import read_manifest
from roberta_dist.corpus.pack import decode_pack
from roberta_dist.corpus.parts import plan_parts
from roberta_dist.corpus.prepare import prepare
from roberta_dist.corpus.sources import open_source
from roberta_dist.corpus.split import normalise
from roberta_dist.errors import ConfigError, DataFault

pytestmark = pytest.mark.unit


def settings(source: Path, output: Path, *overrides: str) -> list[str]:
    return ["corpus=jsonl", f"corpus.paths=[{source}]", f"output={output}", *SMALL, *overrides]


def run(arguments: list[str]) -> int:
    return prepare(compose("prepare", PrepareConfig, arguments))


def run_phases(arguments: list[str], tasks: int) -> None:
    """As `run_in_tasks`, in this process and one after another."""
    for phase, share in (("read", tasks), ("tokenizer", 1), ("join", 1), ("encode", tasks)):
        for task in range(share):
            task_of = [f"prepare.task={task}", f"prepare.tasks={share}"]
            run([*arguments, f"prepare.phase={phase}", *task_of])
    run([*arguments, "prepare.phase=merge"])


def decoded(split: Path) -> list[tuple[int, str]]:
    """(number, text) of every document, numbered as packs.npy says."""
    tokenizer = Tokenizer.from_file(str(split.parent / "tokenizer" / "tokenizer.json"))
    manifest = read_manifest(split)
    documents: dict[int, list[int]] = {}
    for row in manifest.packs:
        raw = (split / manifest.shards[row["shard"]].name).read_bytes()
        pack = decode_pack(raw[row["offset"] : row["offset"] + row["length"]], str(split))
        ends = np.cumsum(pack.sentence_lengths, dtype=np.int64)[pack.document_ends - 1]
        for place, piece in enumerate(np.split(pack.tokens, ends[:-1])):
            documents.setdefault(int(row["first_document"]) + place, []).extend(piece.tolist())
    assert sorted(documents) == [*range(manifest.documents)]
    return [(n, tokenizer.decode(ids, skip_special_tokens=False)) for n, ids in documents.items()]


def texts_of(corpus: Path) -> list[str]:
    return [text for split in ("train", "held_out") for _, text in decoded(corpus / split)]


def report_of(corpus: Path) -> dict:
    return json.loads((corpus / "prepare.json").read_text())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks") / "source"
    texts = write_source(folder)
    (folder.parent / "texts.json").write_text(json.dumps(texts))
    return folder


@pytest.fixture(scope="module")
def reference(source: Path) -> Path:
    output = source.parent / "reference"
    assert run(settings(source, output)) == 0
    return output


def test_every_document_has_the_number_that_the_packs_say(source: Path, reference: Path) -> None:
    assert sorted(texts_of(reference)) == sorted(
        json.loads((source.parent / "texts.json").read_text())
    )
    packs = read_manifest(reference / "train").packs
    continued = packs["first_document"][1:] < packs["first_document"][:-1] + packs["documents"][:-1]
    assert continued.any()  # the long document goes on in later packs


@pytest.mark.parametrize("tasks", [2, 5])
def test_tasks_do_not_change_the_output(
    source: Path, reference: Path, tmp_path: Path, tasks: int
) -> None:
    config = compose("prepare", PrepareConfig, settings(source, tmp_path / "c"))
    assert len(plan_parts(open_source(config.corpus).units)) >= 5
    said = run_in_tasks(settings(source, tmp_path / "c"), tasks)
    assert "unigram entropy" in said[-1]
    assert contents(tmp_path / "c") == contents(reference)


def test_killed_at_random_instants() -> None:
    assert len(kill_and_rerun(2, seed=1)) >= 1


def test_what_is_missing_is_named(source: Path, reference: Path, tmp_path: Path) -> None:
    arguments = settings(source, tmp_path / "c")

    def phase(name: str, task: int = 0, tasks: int = 1) -> None:
        run([*arguments, f"prepare.phase={name}", f"prepare.task={task}", f"prepare.tasks={tasks}"])

    with pytest.raises(ConfigError, match=r"phase=read has not given part-00000 \(task 0 of 1"):
        phase("tokenizer")
    phase("read", 1, 3)
    phase("read", 2, 3)
    with pytest.raises(ConfigError, match=r"part-00000 \(task 0 of 3\), part-00003 \(task 0 of 3"):
        phase("join")
    phase("read", 0, 3)
    phase("read", 0, 3)  # again: nothing is left to do
    with pytest.raises(ConfigError, match="has not given the tokenizer"):
        phase("encode")
    phase("tokenizer")
    with pytest.raises(ConfigError, match="has not given the list of near duplicates"):
        phase("encode")
    phase("join")
    phase("encode", 1, 2)
    with pytest.raises(ConfigError, match=r"phase=encode has not given train-000000 \(task 0 of 2"):
        phase("merge")
    phase("encode", 0, 2)
    phase("merge")
    assert contents(tmp_path / "c") == contents(reference)
    phase("encode", 1, 2)  # complete: left alone
    assert contents(tmp_path / "c") == contents(reference)


def test_other_settings_in_one_task_are_refused(source: Path, tmp_path: Path) -> None:
    arguments = [*settings(source, tmp_path / "c"), "prepare.phase=read", "prepare.tasks=2"]
    run(arguments)
    before = contents(tmp_path / "c")
    with pytest.raises(ConfigError, match=r"corpus.held_out_salt=roberta_dist .*other"):
        run([*arguments, "prepare.task=1", "corpus.held_out_salt=other"])
    (source / "new.jsonl").write_text('{"text": "new"}')
    try:
        with pytest.raises(ConfigError, match="another source"):
            run([*arguments, "prepare.task=1"])
    finally:
        (source / "new.jsonl").unlink()
    assert contents(tmp_path / "c") == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prepare.tasks=2"], "phase=all is the work of one task"),
        (["prepare.phase=join", "prepare.task=1", "prepare.tasks=2"], "is the work of one task"),
        (["prepare.phase=read", "prepare.task=2", "prepare.tasks=2"], r"must be in \[0,"),
    ],
)
def test_impossible_tasks(source: Path, tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(settings(source, tmp_path / "c", *overrides))


def test_the_same_task_twice_at_once_is_refused(source: Path, tmp_path: Path) -> None:
    from roberta_dist.corpus.workfolder import task_lock

    with (
        task_lock(tmp_path / "c", "read", 0, 2),
        pytest.raises(ConfigError, match="is running already"),
    ):
        run(settings(source, tmp_path / "c", "prepare.phase=read", "prepare.tasks=2"))


def test_max_mib_cuts_in_source_order(source: Path, tmp_path: Path) -> None:
    texts = json.loads((source.parent / "texts.json").read_text())
    limit, kept = 0.6 * 2**20, []
    for text in texts:
        if sum(map(len, kept)) >= limit:
            break
        kept.append(text)
    assert len(kept) < len(texts) / 2
    run(settings(source, tmp_path / "one", "corpus.max_mib=0.6"))
    assert sorted(texts_of(tmp_path / "one")) == sorted(kept)
    assert report_of(tmp_path / "one")["read"]["beyond_max_mib"] > 0
    run_phases(settings(source, tmp_path / "three", "corpus.max_mib=0.6"), 3)
    assert contents(tmp_path / "three") == contents(tmp_path / "one")


def near_copies(text: str) -> list[str]:
    """Adversarial copies: only the last two differ after normalisation."""
    words = text.split(" ")
    words[len(words) // 2] = "altogether"
    return [
        text.replace(" ", "  \n\t"),
        unicodedata.normalize("NFD", text),
        f"\u3000{text}\u00a0",
        text.upper(),
        " ".join(words),
    ]


def write_copies(folder: Path) -> tuple[list[str], list[str]]:
    """Files whose documents come again in later files; originals and all copies."""
    folder.mkdir()
    originals = [
        f"Étude {n} du café: " + " ".join(f"naïveté{(n * 31 + i * i) % 977}" for i in range(90))
        for n in range(400)
    ]
    copies = [copy for text in originals for copy in near_copies(text)]
    for name, texts in (("a", originals), ("b", copies[:1000]), ("c", copies[1000:])):
        lines = [json.dumps({"text": text}) for text in texts]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return originals, copies


def test_exact_duplicates_across_parts(tmp_path: Path) -> None:
    originals, copies = write_copies(tmp_path / "s")
    run_phases(settings(tmp_path / "s", tmp_path / "c"), 3)
    kept = texts_of(tmp_path / "c")
    expected = dict.fromkeys(normalise(text) for text in originals + copies)
    assert sorted(map(normalise, kept)) == sorted(expected)
    assert set(originals) <= set(kept)  # the first in source order is the one that stays
    splits = report_of(tmp_path / "c")["splits"].values()
    assert sum(split["duplicates"] for split in splits) == 3 * len(originals)
    train, held_out = ([t for _, t in decoded(tmp_path / "c" / s)] for s in ("train", "held_out"))
    assert held_out and not {*map(normalise, train)} & {*map(normalise, held_out)}


def test_near_duplicates_are_found_and_counted(tmp_path: Path) -> None:
    originals, _ = write_copies(tmp_path / "s")
    arguments = settings(tmp_path / "s", tmp_path / "c", "corpus.near_duplicates=true")
    run_phases(arguments, 3)
    assert sorted(texts_of(tmp_path / "c")) == sorted(originals)
    splits = report_of(tmp_path / "c")["splits"].values()
    assert sum(split["duplicates"] for split in splits) == 3 * len(originals)
    assert sum(split["near_duplicates"] for split in splits) == 2 * len(originals)
    run(settings(tmp_path / "s", tmp_path / "one", "corpus.near_duplicates=true"))
    assert contents(tmp_path / "one") == contents(tmp_path / "c")


def test_a_document_that_is_lost_is_a_fault(source: Path, tmp_path: Path) -> None:
    arguments = settings(source, tmp_path / "c")
    for phase in ("read", "tokenizer", "join"):
        run([*arguments, f"prepare.phase={phase}"])
    marker = tmp_path / "c/.prepare/parts/part-00001.json"
    counts = json.loads(marker.read_text())
    marker.write_text(json.dumps(counts | {"documents": counts["documents"] + 1}))
    run([*arguments, "prepare.phase=encode"])
    with pytest.raises(DataFault, match="do not make up the rest"):
        run([*arguments, "prepare.phase=merge"])
    assert not (tmp_path / "c/prepare.json").exists()


def test_every_phase_says_what_comes_next(source: Path, tmp_path: Path) -> None:
    said = finish([start([*settings(source, tmp_path / "c"), "prepare.phase=read"])])
    assert "next, with the same settings: when every task" in said[0]
