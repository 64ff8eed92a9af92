"""Show rows as the model sees them: `python tools/show_batch.py [--step K] [--rows R] data.path=CORPUS …`.

Takes the overrides of `roberta-dist pretrain`, so what is shown is what that command would read at step
K. Predicted tokens are coloured by what became of them: red was replaced by `<mask>`, yellow by a random
token (written random←original), green was kept. `--plain` writes brackets in place of colours.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from roberta_dist.config.load import compose
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.corpus.bpe import Bpe, byte_alphabet, load_bpe
from roberta_dist.corpus.tokenizer_folder import local_tokenizer
from roberta_dist.errors import RobertaDistError
from roberta_dist.runtime.world import World
from roberta_dist.stream.batch import Batch
from roberta_dist.stream.corpora import first_corpus
from roberta_dist.stream.loader import RankReader
from roberta_dist.stream.open import Stream, open_stream

COLOURS = {
    "mask": ("\033[41m", "\033[0m"),
    "random": ("\033[43m", "\033[0m"),
    "kept": ("\033[42m", "\033[0m"),
}
BRACKETS = {"mask": ("[-", "-]"), "random": ("[~", "~]"), "kept": ("[=", "=]")}
LABELS = {1: "B follows A", 0: "B is of another document", -1: "not asked"}


class Writer:
    """Writes tokens as text.

    Args:
        bpe: the corpus's tokenizer.
        marks: what stands before and after a predicted token, by its fate.
    """

    def __init__(self, bpe: Bpe, marks: dict[str, tuple[str, str]]) -> None:
        self._marks = marks
        self._mask = bpe.specials.mask
        self._tokens = {number: token for token, number in bpe.vocab.items()}
        self._bytes = {character: byte for byte, character in byte_alphabet().items()}
        self._special = set(vars(bpe.specials).values())

    def text(self, token: int) -> str:
        """One token; bytes that are no character of their own become U+FFFD."""
        spelled = self._tokens[token]
        if token in self._special:
            return spelled
        raw = bytes(self._bytes[character] for character in spelled)
        return raw.decode("utf-8", errors="replace").replace("\n", "⏎")

    def predicted(self, shown: int, label: int) -> str:
        """A predicted token, marked."""
        if shown == self._mask:
            fate, text = "mask", self.text(label)
        elif shown == label:
            fate, text = "kept", self.text(label)
        else:
            fate, text = "random", f"{self.text(shown)}←{self.text(label)}"
        before, after = self._marks[fate]
        return f"{before}{text}{after}"

    def row(self, batch: Batch, number: int) -> str:
        """A heading and the text of row `number` of a batch."""
        start, end = (int(place) for place in batch.cu_seqlens[number : number + 2])
        labels = dict(zip(batch.masked_index_M.tolist(), batch.labels_M.tolist(), strict=True))
        tokens = batch.tokens_T[start:end].tolist()
        parts = [
            self.predicted(token, labels[place]) if place in labels else self.text(token)
            for place, token in enumerate(tokens, start)
        ]
        predicted = sum(start <= place < end for place in labels)
        heading = f"row {batch.row_ids_R[number]}: {end - start} tokens, {predicted} predicted"
        if batch.nsp_labels_R is not None:
            heading += f", {LABELS[int(batch.nsp_labels_R[number])]}"
        return f"\n== {heading}\n{''.join(parts)}"


def open_run(overrides: list[str]) -> tuple[PretrainConfig, Stream]:
    """The stream of a `pretrain` command."""
    config = compose("pretrain", PretrainConfig, overrides)
    stream = open_stream(
        config.data,
        config.masking,
        config.train.seed,
        config.train.global_batch_size,
        progress=True,
    )
    return config, stream


def main() -> int:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--step", type=int, default=0, help="which batch")
    parser.add_argument("--rows", type=int, default=4, help="how many rows of it")
    parser.add_argument("--plain", action="store_true", help="brackets in place of colours")
    options, overrides = parser.parse_known_args()
    if options.step < 0 or options.rows < 1:
        parser.error("--step must be ≥ 0 and --rows ≥ 1")
    try:
        config, stream = open_run(overrides)
        reader = RankReader(stream, World(), config.train.least_micro_batch_size)
        batches = reader.micro_batches(stream.plan.row_of_step(options.step))
        reader.close()
        tokenizer = local_tokenizer(first_corpus(config.data), stream.manifest.tokenizer_sha256)
        writer = Writer(load_bpe(tokenizer), BRACKETS if options.plain else COLOURS)
    except RobertaDistError as error:
        print(f"show_batch: {error}", file=sys.stderr)
        return error.exit_code
    left = options.rows
    for batch in batches:
        for number in np.flatnonzero(batch.row_ids_R >= 0)[:left]:
            print(writer.row(batch, int(number)))
        left = max(0, left - len(batch.row_ids_R))
    return 0


if __name__ == "__main__":
    sys.exit(main())
