"""Acceptance of the data plane: `bash launch/test.sh --acceptance data [NUMBER ...]`.

Runs each point of the list on real input and prints a line with its figure; exit code 1 if one
fails. Benchmarks (2, 3) want a machine that does nothing else.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
for folder in ("integration", "unit/stream"):
    sys.path.insert(0, str(ROOT / "tests" / folder))

import run_support

from roberta_dist.config.data import DataConfig, InputFormat, MaskingConfig, Phase
from roberta_dist.corpus.docstrings import find_documentation, read_documentation
from roberta_dist.runtime.world import World
from roberta_dist.stream.loader import RankReader
from roberta_dist.stream.open import Stream, open_stream

WORK = Path(tempfile.mkdtemp(prefix="data-"))
WORLDS = (1, 2, 3, 5, 8, 16)


def say(number: str, ok: bool, figure: str) -> bool:
    print(f"[{'ok' if ok else 'FAILED'}] {number}: {figure}", flush=True)
    return ok


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
                    b"" if batch.nsp_labels_R is None else bytes([batch.nsp_labels_R[i] % 256])
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


POINTS = {"1": order, "2": bench_stream}


if __name__ == "__main__":
    chosen = sys.argv[1:] or list(POINTS)
    results = {number: POINTS[number]() for number in chosen}
    failed = [number for number, passed in results.items() if not passed]
    print(f"{len(results) - len(failed)} passed, {len(failed)} failed {failed or ''}".strip())
    if not failed:
        shutil.rmtree(WORK)
    sys.exit(bool(failed))
