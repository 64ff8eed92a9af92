"""How fast `prepare` is beside bare tiktoken on the same text, and whether memory grows with the corpus.

    python tools/bench_prepare.py [--folder FOLDER] [--mib 128] [--rounds 3] [--skip-memory]

Text: the documentation found in the running Python, written out once as text files, one document
between blank lines. A: `tiktoken.Encoding.encode_ordinary(text)` over all documents, already in
memory, with the same merges, one thread. B: `prepare` with that tokenizer given and one worker, from
files to shards, in a process that has imported everything. A B A B, each in a child process; the
ratio is that of the median rates. Then the peak memory of B for 1 and 10 times the text. The last
line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import resource
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from roberta_dist.config.load import compose
from roberta_dist.config.roots import PrepareConfig
from roberta_dist.corpus.bpe import load_bpe, save_bpe, train_bpe
from roberta_dist.corpus.docstrings import find_documentation, read_documentation
from roberta_dist.corpus.encode import cut_pieces
from roberta_dist.corpus.tiktoken_bpe import GPT2_PATTERN, byte_ranks
from roberta_dist.units import KIB, MIB

FILES = 16
VOCABULARY = 50_265
TRAIN_MIB = 24
COPIES = 10


def write_text(folder: Path, mib: float) -> None:
    """Write the documentation of this Python as text files, and a tokenizer trained on a part."""
    if (folder / "tokenizer" / "vocab.json").is_file():
        return
    documents = [d.text for file in find_documentation() for d in read_documentation(file)]
    documents = list(dict.fromkeys(re.sub(r"\n\s*\n", "\n", text) for text in documents))
    sizes = 0
    kept: list[str] = []
    while sizes < mib * MIB:  # a short text is repeated, each time as other documents
        for text in documents:
            kept.append(f"Copy {len(kept) // len(documents)}. {text}")
            sizes += len(text.encode())
    write_copies(folder / "text-1", kept, 1)
    write_copies(folder / "text-10", kept, COPIES)
    pieces = (piece for text in documents for piece, _ in cut_pieces(text, 4 * KIB))
    save_bpe(train_bpe(_first(pieces, TRAIN_MIB * MIB), VOCABULARY), folder / "tokenizer")


def _first(pieces: Any, limit: int) -> Any:
    seen = 0
    for piece in pieces:
        if seen > limit:
            return
        seen += len(piece)
        yield piece


def write_copies(folder: Path, documents: list[str], copies: int) -> None:
    """Files of `documents`, `copies` times, no two of them equal."""
    folder.mkdir(parents=True, exist_ok=True)
    for copy in range(copies):
        for number in range(FILES):
            texts = (f"{copy}: {text}" for text in documents[number::FILES])
            name = f"{copy:02d}-{number:02d}.txt"
            (folder / name).write_text("\n\n".join(texts), encoding="utf-8")


def bare_tiktoken(folder: Path) -> dict[str, float]:
    """A: tokens of all documents, thrown away one by one."""
    import tiktoken

    documents = [
        text
        for path in sorted((folder / "text-1").iterdir())
        for text in path.read_text(encoding="utf-8").split("\n\n")
    ]
    encoding = tiktoken.Encoding(
        "bench", pat_str=GPT2_PATTERN, special_tokens={},
        mergeable_ranks=byte_ranks(load_bpe(folder / "tokenizer")),
    )  # fmt: skip
    tokens = 0
    wall, cpu = time.perf_counter(), time.process_time()
    for text in documents:
        tokens += len(encoding.encode_ordinary(text))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "bytes": sum(len(t.encode()) for t in documents),
        "tokens": tokens,
        "wall": wall,
        "cpu": cpu,
    }


def run_prepare(folder: Path, copies: int) -> dict[str, float]:
    """B: files to shards."""
    import webdataset  # noqa: F401 - starts torch: not part of the work

    from roberta_dist.corpus.prepare import prepare

    output = folder / "corpus"
    shutil.rmtree(output, ignore_errors=True)
    config = compose(
        "prepare", PrepareConfig,
        [
            "corpus=text", f"corpus.paths=[{folder / f'text-{copies}'}]", f"output={output}",
            f"tokenizer.path={folder / 'tokenizer'}", "corpus.workers=1", "progress=false",
        ],
    )  # fmt: skip
    wall, cpu = time.perf_counter(), time.process_time()
    prepare(config)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    report = json.loads((output / "prepare.json").read_text())
    shutil.rmtree(output)
    tokens = sum(split["tokens"] for split in report["splits"].values())
    return {"bytes": report["read"]["text_bytes"], "tokens": tokens, "wall": wall, "cpu": cpu}


def _child(pipe: Any, function: Any, arguments: tuple[Any, ...]) -> None:
    values = function(*arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scale = MIB if sys.platform == "darwin" else KIB  # bytes there, KiB elsewhere
    pipe.send(values | {"peak_mib": peak / scale})


def measure(function: Any, *arguments: Any) -> dict[str, float]:
    """Run `function` in a process of its own; adds MB/s and its peak resident memory."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_child, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    values: dict[str, float] = mine.recv()
    process.join()
    for clock in ("wall", "cpu"):
        values[f"mb_per_{clock}_s"] = values["bytes"] / 1e6 / values[clock]
    return values


def main() -> int:
    """Measure and print; the last line is JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("outputs/bench_prepare"))
    parser.add_argument("--mib", type=float, default=128.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--skip-memory", action="store_true")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    write_text(folder, arguments.mib)
    bare, whole = [], []
    for number in range(arguments.rounds):
        bare.append(measure(bare_tiktoken, folder))
        whole.append(measure(run_prepare, folder, 1))
        print(
            f"round {number}: tiktoken {bare[-1]['mb_per_wall_s']:.2f} MB/s "
            f"({bare[-1]['mb_per_cpu_s']:.2f} per cpu-second), prepare "
            f"{whole[-1]['mb_per_wall_s']:.2f} ({whole[-1]['mb_per_cpu_s']:.2f}), "
            f"peak {whole[-1]['peak_mib']:.0f} MiB"
        )
    result = {
        f"ratio_{name}": round(
            statistics.median(run[f"mb_per_{clock}_s"] for run in whole)
            / statistics.median(run[f"mb_per_{clock}_s"] for run in bare),
            3,
        )
        for name, clock in (("tiktoken", "wall"), ("tiktoken_cpu", "cpu"))
    }
    peaks = {"peak_mib": round(statistics.median(run["peak_mib"] for run in whole), 1)}
    if not arguments.skip_memory:
        large = measure(run_prepare, folder, COPIES)
        peaks["peak_mib_10x"] = round(large["peak_mib"], 1)
    mib = {"mib": round(whole[0]["bytes"] / MIB, 1)}
    print(json.dumps(result | peaks | mib))
    return 0


if __name__ == "__main__":
    sys.exit(main())
