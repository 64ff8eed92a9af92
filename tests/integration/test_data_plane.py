"""Real runs over mixtures, phases and damaged packs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from run_support import (
    deterministic,
    finish,
    losses,
    metrics,
    prepare_corpus,
    start,
    wait_for_step,
    write_config,
)

from roberta_dist.checkpoint.reader import latest_checkpoint
from roberta_dist.config.data import DataConfig, InputFormat, MaskingConfig
from roberta_dist.corpus.manifest import read_manifest
from roberta_dist.stream.counts import block_counts
from roberta_dist.stream.open import open_stream

pytestmark = pytest.mark.world
SHORT = ["schedule.max_steps=24", "checkpoint.every_steps=8", "checkpoint.keep_last=9"]
NO_DROPOUT = ["model.dropout=0", "model.attention_dropout=0"]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Two corpora of one tokenizer."""
    folder = tmp_path_factory.mktemp("corpora")
    first = prepare_corpus(folder / "first")
    second = prepare_corpus(
        folder / "second", f"tokenizer.path={first}/tokenizer", "corpus.held_out_salt=other"
    )
    return first, second


def mixture(corpora: tuple[Path, Path]) -> list[str]:
    first, second = corpora
    return [
        f"data.corpora={{one: {first}, two: {second}}}", "data.weights={one: 0.75, two: 0.25}",
        "data.sequence_length=32", "data.phases=[{from_step: 6, global_batch_size: 24, ramp_steps: 4},"
        "{from_step: 14, sequence_length: 64, weights: {one: 0.25, two: 0.75}}]",
        "masking=whole_word", *SHORT, *NO_DROPOUT,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory, corpora):
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    finish(write_config(run_dir, corpora[0], *mixture(corpora)), 2)
    return run_dir


def test_a_mixture_says_what_it_read(whole):
    lines = metrics(whole)
    training = [line for line in lines if "loss" in line]
    assert [line["global_batch_size"] for line in training] == [*[16] * 6, 18, 20, 22, *[24] * 15]
    assert [line["sequence_length"] for line in training] == [*[32] * 14, *[64] * 10]
    evaluated = [line for line in lines if "eval_loss" in line]
    assert all({"eval_loss/one", "eval_loss/two"} <= line.keys() for line in evaluated)


def test_stopped_in_the_ramp_it_goes_on_in_another_world(tmp_path, corpora, whole):
    run_dir = tmp_path / "elastic"
    waited_for = "checkpoint.asynchronous=false"
    config = write_config(run_dir, corpora[0], *mixture(corpora), waited_for)
    ranks = start(config, 2)
    wait_for_step(run_dir, ranks, 9)
    ranks.signal(9)
    ranks.wait()
    assert latest_checkpoint(run_dir).name == "step_00000008"
    finish(config, 1, "attempt_001")
    expected, found = losses(whole), losses(run_dir)
    assert found.keys() == expected.keys()
    assert max(abs(found[step] / expected[step] - 1) for step in expected) < 1e-5
    rows = [line.get("next_row") for line in metrics(whole)]
    assert [line.get("next_row") for line in metrics(run_dir)] == rows


def test_a_phase_and_a_corpus_may_be_added_but_nothing_that_was_read_may_change(
    tmp_path, corpora, whole
):
    first, second = corpora
    run_dir = tmp_path / "extended"
    shutil.copytree(whole, run_dir)
    (run_dir / "DONE").unlink()
    third = [value for value in mixture(corpora) if not value.startswith(("data.", "schedule."))]
    third += [
        f"data.corpora={{one: {first}, two: {second}, three: {first}}}", "data.sequence_length=32",
        "data.weights={one: 0.75, two: 0.25, three: 0}", "schedule.max_steps=28", "train.extend=true",
    ]  # fmt: skip
    phases = (
        "data.phases=[{{from_step: 6, global_batch_size: 24, ramp_steps: 4}},"
        "{{from_step: {step}, sequence_length: 64, weights: {{one: 0.25, two: 0.75, three: 0}}}},"
        "{{from_step: 24, weights: {{one: 0, two: 0.5, three: 0.5}}}}]"
    )
    wrong = start(write_config(run_dir, first, *third, phases.format(step=15)), 1, "attempt_001")
    assert wrong.wait() == [2]
    assert "the data is not that of the checkpoint: segments" in wrong.output()
    finish(write_config(run_dir, first, *third, phases.format(step=14)), 1, "attempt_002")
    assert max(losses(run_dir)) == 28
    before = {step: loss for step, loss in losses(run_dir).items() if step <= 24}
    assert before == losses(whole)


def damage(corpus: Path, step: int) -> tuple[int, int]:
    """Flip a bit of a pack that is first read at `step` or soon after; returns (pack, step)."""
    stream = open_stream(
        DataConfig(path=str(corpus), sequence_length=64), MaskingConfig(), 1, 16, False
    )
    read: set[int] = set(stream.order.locate(np.arange(16 * step)).pack_N.tolist())
    assert len(read) < len(stream.manifest.packs) // 2
    manifest = read_manifest(corpus / "train")
    for later in range(step, step + 3):
        for pack in stream.order.locate(np.arange(16 * later, 16 * later + 16)).pack_N.tolist():
            if pack in read:
                continue
            entry = manifest.packs[pack]
            shard = corpus / "train" / manifest.shards[int(entry["shard"])].name
            data = bytearray(shard.read_bytes())
            data[int(entry["offset"]) + 1000] ^= 4
            shard.write_bytes(data)
            return pack, later
    raise AssertionError("every pack is read at once")


def test_a_damaged_held_out_pack_stops_every_rank_also_those_that_do_not_read_it(tmp_path):
    corpus = prepare_corpus(tmp_path / "corpus", "corpus.pack_mib=0.002", "corpus.max_mib=0.5")
    manifest = read_manifest(corpus / "held_out")
    # Rows of the first pack and one of the second.
    rows = int(block_counts(manifest, InputFormat.full_sentences, 64)[0]) + 1
    entry = manifest.packs[1]
    shard = corpus / "held_out" / manifest.shards[int(entry["shard"])].name
    data = bytearray(shard.read_bytes())
    data[int(entry["offset"]) + 500] ^= 4
    shard.write_bytes(data)
    options = [*SHORT, "evaluate.every_steps=3", f"evaluate.max_rows={rows}"]
    for name in ("run", "dry"):
        dry = f"train.dry_run={str(name == 'dry').lower()}"
        ranks = start(write_config(tmp_path / name, corpus, *options, dry), 2)
        assert ranks.wait(60) == [3, 3], ranks.output()[-2000:]
        assert "pack 1 at offset" in ranks.output()


def test_a_damaged_pack_stops_the_run_or_is_left_out_on_all_ranks(tmp_path):
    whole = prepare_corpus(tmp_path / "whole", "corpus.pack_mib=0.002", "corpus.max_mib=1")
    corpus = tmp_path / "damaged"
    shutil.copytree(whole, corpus)
    pack, step = damage(corpus, 5)
    options = [*SHORT, *NO_DROPOUT, "evaluate.every_steps=0"]
    stopped = start(write_config(tmp_path / "stop", corpus, *options), 2)
    assert set(stopped.wait()) == {3}
    rows = f"needed for rows [{16 * step}, {16 * step + 16})"
    assert f"pack {pack} at offset" in stopped.output() and rows in stopped.output()
    assert max(losses(tmp_path / "stop")) == step

    allowed = [*options, "data.quarantine_packs=2"]
    runs = {}
    for world in (1, 2):
        runs[world] = tmp_path / f"world_{world}"
        finish(write_config(runs[world], corpus, *allowed), world)
    columns = [line.get("quarantined_packs") for line in metrics(runs[2])]
    assert columns == [None] * step + [1] * (24 - step)
    one, two = losses(runs[1]), losses(runs[2])
    assert max(abs(one[k] / two[k] - 1) for k in one) < 1e-5
    state = json.loads((latest_checkpoint(runs[2]) / "train_state.json").read_text())
    assert state["quarantine"] == [{"corpus": "corpus", "pack": pack, "first_row": 16 * step}]

    # Nothing moves before the fault; killed after it and resumed, the digits are the same.
    before = losses(tmp_path / "stop")
    assert before == {k: v for k, v in two.items() if k <= step}
    killed = tmp_path / "killed"
    config = write_config(killed, corpus, *allowed)
    ranks = start(config, 2)
    wait_for_step(killed, ranks, 18)
    ranks.signal(9)
    ranks.wait()
    finish(config, 2, "attempt_001")
    assert deterministic(killed) == deterministic(runs[2])


def test_training_text_as_held_out_text_stops_the_run(tmp_path, corpora):
    corpus = tmp_path / "leaking"
    shutil.copytree(corpora[0], corpus)
    shutil.rmtree(corpus / "held_out")
    shutil.copytree(corpus / "train", corpus / "held_out")
    ranks = start(write_config(tmp_path / "run", corpus, *SHORT), 1)
    assert ranks.wait() == [3]
    assert "shard-000000.tar" in ranks.output() and "also in" in ranks.output()
