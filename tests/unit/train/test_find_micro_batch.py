"""What the search asks of the engine, and which earlier result it takes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from roberta_dist.config.data import DataConfig, Phase
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.corpus.manifest import SpecialTokens
from roberta_dist.errors import ConfigError
from roberta_dist.runtime.world import World
from roberta_dist.stream.plan import make_plan
from roberta_dist.train import find_micro_batch as module

pytestmark = pytest.mark.unit
DATA = DataConfig(
    sequence_length=128,
    phases=[
        Phase(from_step=10, global_batch_size=40, ramp_steps=5),
        Phase(from_step=20, sequence_length=512, global_batch_size=8),
    ],
)


def parts(probe):
    manifest = SimpleNamespace(vocab_size=100, special_tokens=SpecialTokens(0, 1, 2, 3, 4))
    plan = make_plan(DATA, 16, (1.0,))
    return SimpleNamespace(
        config=PretrainConfig(data=DATA),
        stream=SimpleNamespace(config=DATA, plan=plan, manifest=manifest),
        engine=SimpleNamespace(device=torch.device("cpu"), world=World(0, 2), probe=probe),
    )


@pytest.mark.parametrize(
    ("rows", "asked"),
    [
        (0, [(1, 2)] * 2),
        (1, [(1, 128), (1, 512)] * 2),
        (8, [(8, 128), (2, 512)] * 2),
        (20, [(20, 128), (4, 512)]),  # one micro-batch a step, and no more rows than a rank has
    ],
)
def test_a_trial_is_a_step_of_every_sequence_length(rows, asked):
    seen = []
    given = parts(lambda batches: seen.extend((len(b.row_ids_R), b.max_seqlen) for b in batches))
    assert module._trial(given, rows) > 0
    assert seen == asked


def test_the_limit_is_the_largest_share_of_a_rank_in_rows_of_the_base_length():
    assert module._rows_by_length(parts(None)) == {128: 20, 512: 4}
    assert module._rows_per_rank(parts(None)) == 20


def test_an_accelerator_without_memory_ends_the_attempt_with_a_way_out():
    def probe(batches):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    with pytest.raises(ConfigError, match=r"4 row\(s\) are out of memory \(CUDA.*2 GiB\)") as ended:
        module._trial(parts(probe), 4)
    assert "memory_budget_mib" in ended.value.remedy


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('{"key": "k", "micro_batch_size": 12}', 12),
        ('{"key": "other", "micro_batch_size": 12}', None),
        ('{"key": "k"}', None),
        ('{"key": "k", "micro_ba', None),
        ("[]", None),
        (None, None),
    ],
)
def test_only_a_whole_record_of_the_same_circumstances_is_taken(tmp_path, text, kept):
    path = tmp_path / "micro_batch.json"
    if text is not None:
        path.write_text(text)
    assert module._kept(path, "k") == kept
