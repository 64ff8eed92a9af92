"""`train.micro_batch_size=auto` in real runs: within the budget, kept, and never another batch."""

from __future__ import annotations

import json

import numpy as np
import pytest
from run_support import finish, metrics, prepare_corpus, start, write_config

from roberta_dist.config.load import load_yaml
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.runtime.world import World
from roberta_dist.stream.loader import RankReader
from roberta_dist.stream.open import open_stream
from roberta_dist.train.micro_batch import even_size

pytestmark = pytest.mark.world
GLOBAL, RANKS, BUDGET_MIB = 500, 2, 560
AUTO = [
    "train.micro_batch_size=auto", f"train.global_batch_size={GLOBAL}", "engine.stage=2",
    f"train.memory_budget_mib={BUDGET_MIB}", "schedule.max_steps=4", "schedule.warmup_steps=1",
    "checkpoint.every_steps=4", "evaluate.every_steps=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return prepare_corpus(tmp_path_factory.mktemp("corpus") / "small")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, corpus):
    """Two ranks; the second start finds the first one's checkpoint at step 4 and goes on to 5."""
    run_dir = tmp_path_factory.mktemp("runs") / "auto"
    ranks = finish(write_config(run_dir, corpus, *AUTO), RANKS)
    (run_dir / "first.out").write_text(ranks.output())
    longer = [*AUTO, "schedule.max_steps=5", "train.extend=true"]
    ranks = finish(write_config(run_dir, corpus, *longer), RANKS, "attempt_001")
    (run_dir / "second.out").write_text(ranks.output())
    return run_dir


def found(run_dir):
    return json.loads((run_dir / "micro_batch.json").read_text())


def test_the_size_fits_and_more_would_not(run_dir):
    record = found(run_dir)
    size, limit = record["micro_batch_size"], record["for_trials_mib"]
    assert 1 < size < GLOBAL // RANKS  # the budget binds
    assert size == even_size(GLOBAL // RANKS, size)
    peaks = {int(rows): peak for rows, peak in record["trials_mib"].items()}
    assert record["peak_mib"] == peaks[size] <= limit < BUDGET_MIB == record["budget_mib"]
    # One micro-batch less, by the line through the first trials and this one:
    steps = -(-GLOBAL // RANKS // size)
    fewer = even_size(GLOBAL // RANKS, -(-GLOBAL // RANKS // (steps - 1)))
    slope = (peaks[size] - peaks[1]) / (size - 1)
    assert peaks[size] + 1.2 * slope * (fewer - size) + 8 > limit


def test_the_run_stays_within_the_budget(run_dir):
    peaks = [line["memory_mib"] for line in metrics(run_dir) if "memory_mib" in line]
    assert len(peaks) == 5 and max(peaks) <= BUDGET_MIB


def test_the_global_batch_is_reached_exactly(run_dir):
    rows = [line["next_row"] for line in metrics(run_dir) if "next_row" in line]
    assert rows == [GLOBAL * (step + 1) for step in range(5)]
    config = load_yaml(PretrainConfig, run_dir / "config.yaml")
    stream = open_stream(config.data, config.masking, config.train.seed, GLOBAL, progress=False)
    size, read = found(run_dir)["micro_batch_size"], []
    for rank in range(RANKS):
        reader = RankReader(stream, World(rank, RANKS), size)
        batches = reader.micro_batches(3 * GLOBAL)
        reader.close()
        assert max(len(batch.row_ids_R) for batch in batches) == size
        read += [batch.row_ids_R[batch.row_ids_R >= 0] for batch in batches]
    assert np.array_equal(np.sort(np.concatenate(read)), np.arange(3 * GLOBAL, 4 * GLOBAL))


def test_a_second_start_does_not_search_again(run_dir):
    first, second = ((run_dir / f"{name}.out").read_text() for name in ("first", "second"))
    size = found(run_dir)["micro_batch_size"]
    assert "trial 1 of at most" in first and f"micro-batch of {size} row(s): kept in" in first
    assert f"micro-batch of {size} row(s), as found before" in second and "trial" not in second
    # What was asked for stays: another world may search anew.
    assert load_yaml(PretrainConfig, run_dir / "config.yaml").train.micro_batch_size == "auto"
    assert "micro_batch_size" not in (run_dir / "attempts.log").read_text()


def test_a_dry_run_searches_too(tmp_path, corpus):
    config = write_config(
        tmp_path / "dry", corpus, *AUTO, "train.dry_run=true", "train.memory_budget_mib=0",
        "data.phases=[{from_step: 2, sequence_length: 32}]", "data.format=segment_pair",
    )  # fmt: skip
    ranks = finish(config, 1)
    assert found(tmp_path / "dry")["found_for"]["sequence_lengths"].keys() == {"32", "64"}
    assert "all parts work" in ranks.output() and "trial 2 of at most" in ranks.output()


def test_a_model_too_large_for_any_size_is_refused_with_the_numbers(tmp_path, corpus):
    config = write_config(
        tmp_path / "large", corpus, *AUTO, "model.hidden_size=1024", "model.ffn_size=4096",
        "train.memory_budget_mib=900",
    )  # fmt: skip
    ranks = start(config, RANKS)
    assert ranks.wait() == [2] * RANKS, ranks.output()[-3000:]
    told = ranks.output()
    for part in ("no micro-batch fits", "MiB with weights and optimizer state", "remedy",
                 "MiB with the gradients", "train.memory_budget_mib=900", "engine.stage"):  # fmt: skip
        assert part in told, told[-3000:]
    assert not (tmp_path / "large" / "micro_batch.json").exists()
