"""What transformers makes of an exported folder, next to what we make of the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from roberta_dist.config.model import Fusion, KernelsConfig, ModelConfig
from roberta_dist.corpus.manifest import SpecialTokens
from roberta_dist.errors import DataFault
from roberta_dist.interop.huggingface import Weights, has_next_sentence
from roberta_dist.model.encoder import RobertaForPretraining
from roberta_dist.runtime.rng import counter_bits, derive_key

SAMPLES = (
    "A plain sentence, with numbers 3.14 and a <mask> in it.",
    "  leading and trailing spaces  \n\tand tabs\r\n",
    "naïve café, 中文, emoji 🙂, and a NUL \x00 byte; literal </s> and <pad>.",
)


def sample_rows(model: ModelConfig, vocab_size: int, pad: int) -> list[Tensor]:
    """Rows of random ids, never `pad`: the longest allowed, a third of it, and two tokens."""
    lengths = (model.max_positions, max(2, model.max_positions // 3), 2)
    bits = counter_bits(derive_key(0, "export"), np.arange(sum(lengths)))
    ids = (bits % np.uint64(vocab_size - 1)).astype(np.int64)
    ids += ids >= pad
    return [torch.from_numpy(part) for part in np.split(ids, np.cumsum(lengths)[:-1])]


@torch.no_grad()
def our_logits(
    weights: Weights, model: ModelConfig, vocab_size: int, rows: Sequence[Tensor]
) -> Tensor:
    """fp32 [tokens of all rows, vocab_size], without dropout."""
    pairs = has_next_sentence(weights)
    eager = KernelsConfig(fusion=Fusion.eager)  # a few rows are not worth a compilation
    module = RobertaForPretraining(model, eager, vocab_size, pairs).eval()
    module.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    lengths = [len(row) for row in rows]
    return module.logits(
        tokens_T=torch.cat(list(rows)),
        positions_T=torch.cat([torch.arange(length) for length in lengths]),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        max_seqlen=max(lengths),
        masked_index_M=torch.arange(sum(lengths)),
    )


@torch.no_grad()
def transformers_logits(folder: Path, rows: Sequence[Tensor], pad: int) -> Tensor:
    """The same from the folder, as `AutoModelForMaskedLM` loads it, rows padded into one batch.

    Raises:
        DataFault: transformers finds weights missing, unknown or of another shape.
    """
    from transformers import AutoModelForMaskedLM

    module: Any
    module, info = AutoModelForMaskedLM.from_pretrained(
        folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[problem]:
            raise DataFault(f"{folder}: transformers reports {problem} {sorted(info[problem])}")
    ids = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=pad)
    lengths = torch.tensor([len(row) for row in rows])
    present = torch.arange(ids.shape[1]) < lengths[:, None]
    logits: Tensor = module.eval()(input_ids=ids, attention_mask=present.long()).logits
    return logits[present]


def max_difference(
    folder: Path, weights: Weights, model: ModelConfig, vocab_size: int, pad: int
) -> float:
    """Largest absolute logit difference between the folder and `weights`; NaN where one is."""
    rows = sample_rows(model, vocab_size, pad)
    expected = our_logits(weights, model, vocab_size, rows)
    return float((transformers_logits(folder, rows, pad) - expected).abs().max())


def check_tokenizer(folder: Path, vocab_size: int, special: SpecialTokens) -> None:
    """AutoTokenizer must give the corpus's ids.

    Raises:
        DataFault: another size, other special ids, or another segmentation of `SAMPLES`.
    """
    from transformers import AutoTokenizer

    theirs: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ours = Tokenizer.from_file(str(folder / "tokenizer.json"))
    found = {
        "vocab_size": len(theirs),
        "bos": theirs.bos_token_id,
        "pad": theirs.pad_token_id,
        "eos": theirs.eos_token_id,
        "unk": theirs.unk_token_id,
        "mask": theirs.mask_token_id,
    }
    expected = {"vocab_size": vocab_size, **vars(special)}
    if found != expected:
        raise DataFault(
            f"{folder}: transformers' tokenizer has {found}, the corpus has {expected}",
            "prepare the corpus again with its tokenizer in RoBERTa's form",
        )
    for text in SAMPLES:
        ids = theirs(text, add_special_tokens=False, verbose=False)["input_ids"]
        if ids != ours.encode(text, add_special_tokens=False).ids:
            raise DataFault(f"{folder}: transformers' tokenizer splits {text!r} another way")
