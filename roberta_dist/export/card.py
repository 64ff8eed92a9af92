"""The model card: what was trained, on how much, and how to load it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from roberta_dist.config.model import ModelConfig
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.corpus.manifest import Manifest
from roberta_dist.optim.schedule import span_at
from roberta_dist.plan.flops import parameter_count
from roberta_dist.runtime.versions import installed_version

_CARD = """---
library_name: transformers
pipeline_tag: fill-mask
tags:
- roberta
- masked-language-modeling
---

# A RoBERTa masked language model

Pretrained from scratch with `roberta_dist`. Weights are fp32; the logits of this folder under
`transformers` were compared with the trainer's: largest absolute difference {difference:.1e}
(accepted up to {tolerance:.1e}).

```python
from transformers import pipeline

fill = pipeline("fill-mask", model="PATH/TO/THIS/FOLDER")
print(fill("The capital of France is <mask>."))
```

| fact | value |
|---|---|
{rows}

## Limits

The model has seen only the text named above and repeats its errors and biases. It predicts masked
tokens; for other tasks it needs fine-tuning.
"""


def _row(name: str, value: object) -> str:
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return "| {} | {} |".format(*(part.replace("|", "\\|") for part in (name, text)))


def render_card(
    model: ModelConfig,
    manifest: Manifest,
    facts: Mapping[str, object],
    difference: float,
    tolerance: float,
) -> str:
    """README.md of an export; `facts` are shown in their order after sizes and corpus."""
    all_facts: dict[str, object] = {
        "parameters": parameter_count(model, manifest.vocab_size),
        "layers, width, heads": f"{model.num_layers}, {model.hidden_size}, {model.num_heads}",
        "longest sequence": model.max_positions,
        "vocabulary": manifest.vocab_size,
        "training documents": manifest.documents,
        "training corpus tokens": manifest.tokens,
        **facts,
        **versions(),
    }
    rows = "\n".join(_row(name, value) for name, value in all_facts.items())
    return _CARD.format(difference=difference, tolerance=tolerance, rows=rows)


def versions() -> dict[str, object]:
    """Versions of what computed the weights."""
    names = ("roberta_dist", "torch", "deepspeed", "transformers")
    missing = "not installed as a distribution"
    return {f"{name} version": installed_version(name) or missing for name in names}


def run_facts(
    config: PretrainConfig,
    train_state: Mapping[str, Any],
    held_out_loss: float | None,
    unigram_entropy: float | None,
) -> dict[str, object]:
    """What a run's folder says about its training.

    Args:
        config: of the run.
        train_state: the checkpoint's: `step`, `next_row` and, where there were any, `skipped`.
        held_out_loss: nats a predicted token, the last one measured up to that step.
        unigram_entropy: nats a token of the held-out split: the best constant prediction's loss.
    """
    sequences = int(train_state["next_row"])
    facts: dict[str, object] = {
        "steps": int(train_state["step"]),
        "steps skipped as not finite": int(train_state.get("skipped", 0)),
        "global batch (sequences)": config.train.global_batch_size,
        "sequence length (tokens)": config.data.sequence_length,
        "sequences seen": sequences,
        "tokens seen (at most)": sequences * config.data.sequence_length,
        "input format": config.data.format.value,
        "masking": f"{config.masking.mode.value}, {config.masking.probability:.0%} of tokens, "
        f"by {config.masking.unit.value.replace('_', ' ')}",
        "optimizer": f"{config.optim.name.value}, weight decay {config.optim.weight_decay}",
        "peak learning rate": config.optim.lr,
        "warmup steps": span_at(0, config.optim.lr, config.schedule).warmup,
        "decay": f"{config.schedule.decay.value} to step {config.schedule.max_steps:,}",
        **_phase_facts(config),
        "precision": config.engine.precision.value,
        "seed": config.train.seed,
    }
    if held_out_loss is not None:
        facts["held-out loss (nats a masked token)"] = f"{held_out_loss:.4f}"
        facts["held-out perplexity"] = f"{math.exp(min(held_out_loss, 700.0)):.2f}"
    if unigram_entropy is not None:
        facts["held-out unigram entropy (nats a token)"] = f"{unigram_entropy:.4f}"
    return facts


def _phase_facts(config: PretrainConfig) -> dict[str, object]:
    """Peak and warmup of each phase in which the schedule begins anew."""
    facts: dict[str, object] = {}
    for phase in config.schedule.phases:
        span = span_at(phase.from_step, config.optim.lr, config.schedule)
        facts[f"schedule begins anew at step {span.first:,}"] = (
            f"peak learning rate {span.peak}, {span.warmup:,} warmup steps"
        )
    return facts
