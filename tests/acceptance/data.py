"""Acceptance of the data plane: `bash launch/test.sh --acceptance data [NUMBER ...]`.

Runs each point of the list on real input and prints a line with its figure; exit code 1 if one
fails. Benchmarks (2, 3) want a machine that does nothing else.
"""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import tempfile
import time
import unicodedata
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
for folder in ("integration", "unit/stream", "acceptance/support"):
    sys.path.insert(0, str(ROOT / "tests" / folder))

import corruption
import prepare_support
import remote_support
import run_support
from points import run_points, say

from roberta_dist.config.data import (
    DataConfig,
    InputFormat,
    MaskingConfig,
    MaskSelection,
    MaskUnit,
    Phase,
)
from roberta_dist.config.load import compose
from roberta_dist.config.roots import PrepareConfig
from roberta_dist.corpus.bpe import load_bpe
from roberta_dist.corpus.docstrings import find_documentation, read_documentation
from roberta_dist.corpus.manifest import read_manifest
from roberta_dist.corpus.prepare import prepare
from roberta_dist.runtime.world import World
from roberta_dist.stream.loader import RankReader
from roberta_dist.stream.open import Stream, open_stream
from roberta_dist.stream.packs import PackReader

WORK = Path(tempfile.mkdtemp(prefix="data-"))
WORLDS = (1, 2, 3, 5, 8, 16)


def three_corpora(folder: Path) -> dict[str, str]:
    """Documentation of three kinds, tokenised by the first one's tokenizer."""
    texts: dict[str, list[str]] = {"topics": [], "standard": [], "installed": []}
    for name, path in find_documentation():
        kind = (
            "topics"
            if name.startswith("pydoc")
            else name.split("/")[0].replace("stdlib", "standard")
        )
        kind = "installed" if kind == "site-packages" else kind
        if sum(map(len, texts[kind])) < 2_000_000:
            texts[kind] += [document.text for document in read_documentation((name, path))]
    paths = {}
    for name, documents in sorted(texts.items(), key=lambda item: -len(item[1])):
        source = folder / f"{name}.jsonl"
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
        given = [f"tokenizer.path={next(iter(paths.values()))}/tokenizer"] if paths else []
        paths[name] = str(folder / name)
        run_support.prepare_corpus(
            folder / name, "corpus=jsonl", f"corpus.paths=[{source}]", "corpus.max_mib=2", *given
        )
    return paths


def rows_of_batch(stream: Stream, row: int, world_size: int) -> dict[int, bytes]:
    """Masked rows of a batch, labels included, as all ranks of a world read them."""
    rows = {}
    for rank in range(world_size):
        reader = RankReader(stream, World(rank, world_size, rank), 16)
        for batch in reader.micro_batches(row):
            for i, number in enumerate(batch.row_ids_R.tolist()):
                a, b = batch.cu_seqlens[i : i + 2]
                inside = (batch.masked_index_M >= a) & (batch.masked_index_M < b)
                labels = batch.labels_M[inside].tobytes()
                next_label = (
                    b"" if batch.nsp_labels_R is None else batch.nsp_labels_R[i : i + 1].tobytes()
                )
                if number >= 0:
                    rows[number] = batch.tokens_T[a:b].tobytes() + b"|" + labels + next_label
        reader.close()
    return rows


def order() -> bool:
    """1: every format, a mixture of three corpora, across a ramp."""
    paths = three_corpora(WORK)
    weights = dict(zip(paths, (0.5, 0.3, 0.2), strict=True))
    phases = [
        Phase(from_step=4, global_batch_size=256, ramp_steps=4),
        Phase(from_step=12, sequence_length=128),
        Phase(from_step=20, weights=dict(zip(paths, (0.2, 0.2, 0.6), strict=True))),
    ]
    ok = True
    for input_format in InputFormat:
        data = DataConfig(
            corpora=paths, weights=weights, phases=phases, format=input_format, sequence_length=64
        )
        stream = open_stream(data, MaskingConfig(), 1, 64, progress=False)
        plan, compared, sizes = stream.plan, 0, []
        for step in (0, 3, 4, 5, 7, 8, 11, 12, 13, 20, 3000):
            row = plan.row_of_step(step)
            seen = [rows_of_batch(stream, row, size) for size in WORLDS]
            if any(rows != seen[0] for rows in seen) or len(seen[0]) != plan.batch_rows(row):
                return say("1 order", False, f"{input_format.value} step {step} differs")
            compared += len(seen[0]) * len(seen)
            sizes.append(plan.batch_rows(row))
        ok &= say(
            f"1 order {input_format.value}", True,
            f"{compared} masked rows equal for world {WORLDS}; batches of {min(sizes)} to {max(sizes)} rows",
        )  # fmt: skip
        ok &= late_resume(stream, input_format)
    return ok


def late_resume(stream: Stream, input_format: InputFormat) -> bool:
    """1: the first batch of a fresh reader, 20 epochs in."""
    plan = stream.plan
    step = 20
    while stream.order.epochs(plan.row_of_step(step)) < 20:
        step *= 2
    row = plan.row_of_step(step)
    reader = RankReader(stream, World(0, 2, 0), 16)
    began = time.perf_counter()
    reader.micro_batches(row)
    took = time.perf_counter() - began
    reads, rows = reader.maker.reads, plan.batch_rows(row) // 2
    reader.close()
    return say(
        f"1 resume {input_format.value}", took < 1 and reads <= rows,
        f"step {step}, {stream.order.epochs(row):.0f} epochs in: first batch {1000 * took:.0f} ms (< 1000), "
        f"{reads} packs read for {rows} rows, of {sum(len(c.manifest.packs) for c in stream.corpora)}",
    )  # fmt: skip


def bench(tool: str, *arguments: str) -> dict[str, float]:
    """The JSON of a benchmark's last line."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / tool), *arguments],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    if done.returncode:
        print(done.stderr[-3000:], file=sys.stderr)
        return {}
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def bench_stream() -> bool:
    """2: against webdataset, Hugging Face streaming and a memory map."""
    found = bench("bench_stream.py")
    ok = bool(found) and (
        found["ratio_webdataset"] >= 8 and found["ratio_hf"] >= 8
        and found["ratio_memmap"] >= 0.25 and found["mask_ratio"] <= 2
    )  # fmt: skip
    return say("2", ok, f"{found} (webdataset, hf ≥ 8; memmap ≥ 0.25; mask ≤ 2)")


def bench_prepare() -> bool:
    """3: against bare tiktoken; memory against the size of the corpus; one line of 1 GB."""
    found = bench("bench_prepare.py")
    ok = bool(found) and found["ratio_tiktoken"] >= 0.85
    ok = ok and found["peak_mib_10x"] <= 1.1 * found["peak_mib"]
    ok = say("3", ok, f"{found} (ratio_tiktoken ≥ 0.85 a core; peak of 10x ≤ 1.1 peak)")
    return ok & huge_line()


def huge_line() -> bool:
    """3: a text file of one line of 1 GB, prepared in one process."""
    source = WORK / "huge.txt"
    line = b" ".join(b"word%d" % (i * 7919 % 100_003) for i in range(100_000)) + b" "
    with open(source, "wb") as file:
        while file.tell() < 1_000_000_000:
            file.write(line)
    measure = (
        "import resource, sys\n"
        "from roberta_dist.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, 'MiB')\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", measure, "prepare", "corpus=text", f"corpus.paths=[{source}]",
         f"output={WORK / 'huge'}", "corpus.workers=1", "tokenizer.vocab_size=2000",
         "tokenizer.train_mib=4", "progress=false"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    source.unlink()
    peak = int((re.findall(r"peak (\d+) MiB", done.stdout) or ["0"])[0])
    cuts = (re.findall(r"[\d,]+ cuts of over-long ones", done.stdout) or ["no cut told"])[0]
    ok = done.returncode == 0 and 0 < peak < 1000
    return say("3 one line of 1 GB", ok, f"exit {done.returncode}, peak {peak} MiB, {cuts}")


def corruptions() -> bool:
    """4: 200 random corruptions, ours and webdataset's answer to each."""
    logging.disable(logging.WARNING)  # what the reader says of each is counted
    found = corruption.summary(corruption.run(200, 1, WORK / "corruptions"))
    logging.disable(logging.NOTSET)
    ok = found["corruptions"] == 200 and found["undetected"] == 0
    return say("4", ok, f"{found}")


def remote() -> bool:
    """5: 20 steps from S3 and from a web server, also with the server killed and restarted."""
    corpus = run_support.prepare_corpus(WORK / "served")
    expected = remote_support.run_from_disk(WORK / "disk", corpus)
    ok = True
    for kind in ("s3", "http"):
        for kill in (False, True):
            folder = WORK / f"{kind}-{kill}"
            folder.mkdir()
            run_dir = remote_support.run_from_server(kind, corpus, folder, kill)
            same = remote_support.same_metrics(run_dir, expected)
            steps = max(run_support.losses(run_dir))
            after = "server killed after step 3, restarted" if kill else "undisturbed"
            ok &= say(
                f"5 {kind}", same and steps == 20,
                f"{after}: {steps} steps, deterministic columns equal those from disk: {same}",
            )  # fmt: skip
    return ok


def references() -> bool:
    """6: formats and masks against references written out slowly, and their statistics."""
    files = ("test_pairs.py", "test_masking.py", "test_masking_units.py", "test_rows.py")
    folder = ROOT / "tests" / "unit" / "stream"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *(str(folder / name) for name in files)],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    ok = say("6 references", done.returncode == 0, done.stdout.strip().splitlines()[-1])
    return ok & statistics_of_pairs() & statistics_of_masks()


def statistics_of_pairs() -> bool:
    """6: shares of next-sentence labels over a real corpus."""
    corpus = run_support.prepare_corpus(WORK / "pairs")
    ok = True
    for input_format in (InputFormat.segment_pair, InputFormat.sentence_pair):
        data = DataConfig(path=str(corpus), format=input_format, sequence_length=128)
        stream = open_stream(data, MaskingConfig(), 1, 4096, progress=False)
        reader = RankReader(stream, World(), 256)
        labels = np.concatenate([b.nsp_labels_R for b in reader.micro_batches(0)])
        reader.close()
        counted = int((labels >= 0).sum())
        sigma = (int((labels == 1).sum()) - counted / 2) / (np.sqrt(counted) / 2)
        ok &= say(
            f"6 {input_format.value}", abs(sigma) < 5 and counted > 0.98 * len(labels),
            f"{np.mean(labels == 1):.4f} next of {counted} pairs ({sigma:+.1f} sigma), "
            f"{len(labels) - counted} rows without a pair",
        )  # fmt: skip
    return ok


def statistics_of_masks() -> bool:
    """6: what each unit and selection predicts of a real corpus, and the lengths of spans."""
    corpus = run_support.prepare_corpus(WORK / "masks")
    data = DataConfig(path=str(corpus), sequence_length=128)
    ok = True
    for unit in MaskUnit:
        selection = MaskSelection.exact if unit is MaskUnit.span else MaskSelection.bernoulli
        masking = MaskingConfig(unit=unit, selection=selection)
        stream = open_stream(data, masking, 1, 4096, progress=False)
        reader = RankReader(stream, World(), 256)
        predicted = ordinary = masked = split = 0
        mask_id = stream.manifest.special_tokens.mask
        for batch in reader.micro_batches(0):
            predicted += len(batch.masked_index_M)
            shown_M = batch.tokens_T[batch.masked_index_M]
            masked += int((shown_M == mask_id).sum())
            tokens_T = batch.tokens_T.copy()
            tokens_T[batch.masked_index_M] = batch.labels_M
            ordinary += int((~stream.rule.is_special_V[tokens_T]).sum())
            split += split_words(stream, tokens_T, batch.masked_index_M)
        reader.close()
        rate, share = predicted / ordinary, masked / predicted
        whole = unit is MaskUnit.token or split == 0
        ok &= say(
            f"6 {unit.value}", abs(rate - 0.15) < 0.01 and abs(share - 0.8) < 0.02 and whole,
            f"{rate:.4f} of {ordinary} tokens predicted, {share:.4f} of them masked; "
            f"{split} words predicted in part",
        )  # fmt: skip
    return ok


def split_words(stream: Stream, tokens_T: np.ndarray, index_M: np.ndarray) -> int:
    """Words between spaces of which some tokens are predicted and some are not, by plain reading.

    Left out are longer words than are kept whole, and those after tokens of nothing but spaces, which
    belong to the word and count for its length.
    """
    words = stream.rule.words
    if words is None:
        return 0
    special = stream.rule.is_special_V
    predicted = set(index_M.tolist())
    count, word, after_spaces = 0, [], False
    for place, token in enumerate([*tokens_T.tolist(), int(np.flatnonzero(special)[0])]):
        if special[token] or words.begins_with_space[token]:
            states = {at in predicted for at in word}
            whole = len(word) <= stream.rule.max_word_tokens and not after_spaces
            count += len(states) == 2 and whole
            after_spaces = bool(word) and bool(words.only_space[tokens_T[word[-1]]])
            word = []
        if not special[token]:
            word.append(place)
        else:
            after_spaces = False
    return count


def tasks_and_kills() -> bool:
    """7: 1, 2 and 5 tasks; kill -9 at 20 random instants."""
    folder = WORK / "tasks"
    texts = prepare_support.write_source(folder / "source")
    arguments = ["corpus=jsonl", f"corpus.paths=[{folder / 'source'}]", *prepare_support.SMALL]
    outputs = {}
    for tasks in (1, 2, 5):
        prepare_support.run_in_tasks([*arguments, f"output={folder / str(tasks)}"], tasks)
        outputs[tasks] = prepare_support.contents(folder / str(tasks))
    same = outputs[1] == outputs[2] == outputs[5]
    ok = say(
        "7 tasks", same,
        f"{len(texts)} documents in 1, 2 and 5 tasks: {len(outputs[1])} files byte-identical: {same}",
    )  # fmt: skip
    killed = prepare_support.kill_and_rerun(20, 1)
    return ok & say(
        "7 kills", len(killed) >= 15,
        f"{len(killed)} of 20 killed before their end, from {min(killed):.2f} to {max(killed):.2f} s; "
        "all run again to the same bytes",
    )  # fmt: skip


def documents_of(corpus: Path, split: str) -> list[str]:
    """Texts of a split, decoded from its packs."""
    bpe = load_bpe(corpus / "tokenizer")
    manifest = read_manifest(corpus / split)
    reader = PackReader(manifest)
    texts: dict[int, list[int]] = {}
    for index, entry in enumerate(manifest.packs):
        pack = reader.read(index)
        ends = np.cumsum(pack.sentence_lengths, dtype=np.int64)
        start = 0
        for number, last in enumerate(pack.document_ends.tolist()):
            end = int(ends[last - 1])
            document = int(entry["first_document"]) + number
            texts.setdefault(document, []).extend(pack.tokens[start:end].tolist())
            start = end
    return [bpe.tokenizer.decode(ids, skip_special_tokens=False) for ids in texts.values()]


def held_out() -> bool:
    """8: no exact duplicate, after normalisation, of a held-out document in training."""
    corpus = WORK / "documentation"
    settings = ["corpus=docstrings", f"output={corpus}", "corpus.held_out_fraction=0.05"]
    settings += ["tokenizer.vocab_size=8192", "tokenizer.train_mib=8", "progress=false"]
    prepare(compose("prepare", PrepareConfig, settings))
    ok = no_overlap("8 documentation", corpus)
    source = WORK / "adversarial.jsonl"
    texts = [f"Caf\u00e9 number {i}\n  has   {i % 7} tables." for i in range(3000)]
    copies = [
        copy
        for text in texts
        for copy in (
            text, text + "  \n", unicodedata.normalize("NFD", text), " ".join(text.split()),
            "\u00a0" + text.replace(" ", "\t"),
        )
    ]  # fmt: skip
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in copies))
    adversarial = WORK / "adversarial"
    settings = ["corpus=jsonl", f"corpus.paths=[{source}]", f"output={adversarial}"]
    settings += ["corpus.held_out_fraction=0.2", "tokenizer.vocab_size=400", "progress=false"]
    prepare(compose("prepare", PrepareConfig, settings))
    return ok & no_overlap("8 near copies", adversarial, len(texts))


def no_overlap(number: str, corpus: Path, expected: int | None = None) -> bool:
    """Say how many normalised texts both splits share."""

    def normal(text: str) -> str:
        return " ".join(unicodedata.normalize("NFC", text).split())

    train = [normal(text) for text in documents_of(corpus, "train")]
    held = [normal(text) for text in documents_of(corpus, "held_out")]
    shared = len(set(train) & set(held))
    distinct = len(set(train)) == len(train) and len(set(held)) == len(held)
    kept = expected is None or len(train) + len(held) == expected
    return say(
        number, shared == 0 and distinct and kept and bool(held),
        f"{len(train)} training and {len(held)} held-out documents, decoded from the packs: {shared} in "
        f"both, all distinct: {distinct}",
    )  # fmt: skip


POINTS = {
    "1": order, "2": bench_stream, "3": bench_prepare, "4": corruptions, "5": remote,
    "6": references, "7": tasks_and_kills, "8": held_out,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_points(POINTS, WORK))
