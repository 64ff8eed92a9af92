"""Weights and a tokenizer become a folder that transformers loads, and fill-mask reads it offline."""

import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import roberta_dist.export.huggingface as export
import roberta_dist.interop.huggingface as interop
from roberta_dist.checkpoint import format as layout
from roberta_dist.config.data import DataConfig
from roberta_dist.config.load import to_yaml
from roberta_dist.config.model import KernelsConfig, ModelConfig
from roberta_dist.config.roots import ExportConfig, PredictConfig, PretrainConfig
from roberta_dist.config.train import TrainConfig
from roberta_dist.corpus.manifest import PACK_DTYPE, Manifest, SpecialTokens, write_manifest
from roberta_dist.errors import ConfigError, DataFault
from roberta_dist.export.huggingface import WRITTEN, export_weights
from roberta_dist.export.run import export_checkpoint, held_out_loss
from roberta_dist.model.encoder import RobertaForPretraining
from roberta_dist.model.init import init_weights
from roberta_dist.predict.fill_mask import predict
from roberta_dist.runtime.files import file_sha256, write_json
from roberta_dist.runtime.rundir import COMPLETE

pytestmark = pytest.mark.unit

MODEL = ModelConfig(num_layers=2, hidden_size=32, ffn_size=64, num_heads=2, max_positions=40)
TEXTS = [
    "A plain sentence with a <mask> in it.",
    "<mask>",
    "naïve café 中文 🙂 </s> <pad>",
    "  spaces  \n\n\tand tabs",
    "def f(x):\n    return x ** 2\n",
]


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory):
    """A byte-level BPE in RoBERTa's order: four specials first, `<mask>` last."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from tokenizers.trainers import BpeTrainer

    folder = tmp_path_factory.mktemp("tokenizer")
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=299,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([Path(__file__).read_text()], trainer)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), add_prefix_space=False
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))
    vocab = json.loads((folder / "vocab.json").read_text())
    vocab["<mask>"] = len(vocab)
    (folder / "vocab.json").write_text(json.dumps(vocab))
    return folder


@pytest.fixture(scope="module")
def manifest(tokenizer_dir):
    size = len(json.loads((tokenizer_dir / "vocab.json").read_text()))
    return Manifest(
        folder=Path("train"),
        sha256="0" * 64,
        split="train",
        tokenizer_sha256="0" * 64,
        vocab_size=size,
        special_tokens=SpecialTokens(bos=0, pad=1, eos=2, unk=3, mask=size - 1),
        shards=(),
        documents=1234,
        tokens=56789,
        unigram_entropy=5.0,
        held_out_salt="",
        held_out_fraction=0.01,
        packs=np.zeros(0),
    )


@pytest.fixture(scope="module")
def weights(manifest):
    module = RobertaForPretraining(MODEL, KernelsConfig(), manifest.vocab_size)
    init_weights(module, seed=1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return {name: value.numpy() for name, value in module.state_dict().items()}


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, weights, manifest, tokenizer_dir):
    output = tmp_path_factory.mktemp("run") / "export"
    facts = {"optimizer steps": 1000, "a | b": "c|d"}
    difference = export_weights(weights, MODEL, manifest, tokenizer_dir, output, facts, 1e-4)
    assert difference <= 1e-4
    return output


def test_the_folder_is_whole_and_alone(exported):
    assert {path.name for path in exported.iterdir()} == set(WRITTEN)
    assert [path.name for path in exported.parent.iterdir()] == ["export"]
    card = (exported / "README.md").read_text()
    for fact in ("| training documents | 1,234 |", "| optimizer steps | 1,000 |", "| a \\| b | c"):
        assert fact in card
    config = json.loads((exported / "config.json").read_text())
    assert config["max_position_embeddings"] == 42
    assert config["architectures"] == ["RobertaForMaskedLM"]


def test_a_next_sentence_head_is_left_out_and_told(
    exported, tmp_path, weights, manifest, tokenizer_dir, caplog
):
    module = RobertaForPretraining(MODEL, KernelsConfig(), manifest.vocab_size, next_sentence=True)
    init_weights(module, seed=1)
    both = {name: value.numpy() for name, value in module.state_dict().items()} | weights
    assert len(both) == len(weights) + 4
    difference = export_weights(both, MODEL, manifest, tokenizer_dir, tmp_path / "export", {}, 1e-4)
    assert difference <= 1e-4
    told = [record.message for record in caplog.records if "next-sentence head" in record.message]
    assert told == ["RobertaForMaskedLM has no next-sentence head: the trained one is left out"]
    assert f"| next-sentence head | {told[0]} |" in (tmp_path / "export" / "README.md").read_text()
    assert "next-sentence" not in (exported / "README.md").read_text()
    files = (folder / "model.safetensors" for folder in (tmp_path / "export", exported))
    left, right = (file.read_bytes() for file in files)
    assert left == right


@pytest.mark.parametrize("kept", [{"vocab.json", "merges.txt"}, {"tokenizer.json"}])
@pytest.mark.parametrize("config_too", [True, False])
def test_either_tokenizer_form_loads_alone(exported, tmp_path, kept, config_too, no_network):
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    names = kept | {"config.json"} | ({"tokenizer_config.json"} if config_too else set())
    for name in names:
        shutil.copy(exported / name, tmp_path / name)
    theirs = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    ours = Tokenizer.from_file(str(exported / "tokenizer.json"))
    for text in TEXTS:
        if "vocab.json" in kept and not config_too and " <mask>" in text:
            continue  # transformers' own default there: a mask that keeps the space before it
        assert theirs(text)["input_ids"] == ours.encode(text).ids, text
    assert theirs.mask_token_id == ours.token_to_id("<mask>") == len(theirs) - 1
    if config_too:
        assert theirs.model_max_length == MODEL.max_positions


@pytest.fixture
def wrong_conversion(monkeypatch):
    """A conversion that swaps query and key of one layer: shapes fit, numbers do not."""
    right = interop.to_hf_state_dict

    def swapped(*arguments):
        state = right(*arguments)
        query, key = (
            f"roberta.encoder.layer.1.attention.self.{part}.bias" for part in ("query", "key")
        )
        state[query], state[key] = state[key], state[query]
        return state

    monkeypatch.setattr(export, "to_hf_state_dict", swapped)


def test_a_wrong_conversion_is_refused_and_nothing_is_left(
    tmp_path, weights, manifest, tokenizer_dir, wrong_conversion
):
    output = tmp_path / "export"
    with pytest.raises(DataFault, match="logits differ from ours by"):
        export_weights(weights, MODEL, manifest, tokenizer_dir, output, {}, 1e-4)
    assert not list(tmp_path.iterdir())


def test_weights_that_do_not_fit_are_refused(tmp_path, weights, manifest, tokenizer_dir):
    broken = {**weights, "head.norm.bias": weights["head.norm.bias"].copy()}
    broken["head.norm.bias"][3] = np.nan
    for bad, message in (
        (broken, "nan"),
        ({**weights, "extra": np.zeros(3)}, "unknown weights"),
        (
            {k: v for k, v in weights.items() if k != "head.norm.bias"},
            r"head\.norm\.bias is missing",
        ),
        ({**weights, "positions.weight": np.zeros((3, 32))}, r"expected \[42, 32\]"),
        ({**weights, "head.norm.bias": np.zeros(31)}, r"head\.norm\.bias has shape \[31\]"),
    ):
        with pytest.raises(DataFault, match=message):
            export_weights(bad, MODEL, manifest, tokenizer_dir, tmp_path / "export", {}, 1e-4)
        assert not list(tmp_path.iterdir())


def test_a_failed_export_leaves_the_previous_one(
    exported, weights, manifest, tokenizer_dir, wrong_conversion
):
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    with pytest.raises(DataFault):
        export_weights(weights, MODEL, manifest, tokenizer_dir, exported, {}, 1e-4)
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before
    assert [path.name for path in exported.parent.iterdir()] == ["export"]


def test_a_new_export_replaces_the_previous_one(tmp_path, weights, manifest, tokenizer_dir):
    output = tmp_path / "deep" / "export"
    for step in (1, 2):
        facts = {"optimizer steps": step}
        export_weights(weights, MODEL, manifest, tokenizer_dir, output, facts, 1e-4)
        assert f"| optimizer steps | {step} |" in (output / "README.md").read_text()
    assert [path.name for path in output.parent.iterdir()] == ["export"]


def test_a_folder_of_someone_else_is_not_replaced(tmp_path, weights, manifest, tokenizer_dir):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"thesis\.tex"):
        export_weights(weights, MODEL, manifest, tokenizer_dir, tmp_path, {}, 1e-4)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_another_tokenizer_is_refused(tmp_path, weights, manifest, tokenizer_dir):
    other = tmp_path / "tokenizer"
    shutil.copytree(tokenizer_dir, other)
    vocab = json.loads((other / "tokenizer.json").read_text())
    vocab["model"]["merges"] = vocab["model"]["merges"][:-5]
    (other / "tokenizer.json").write_text(json.dumps(vocab))
    (other / "merges.txt").unlink()
    with pytest.raises(DataFault, match=r"merges\.txt"):
        export_weights(weights, MODEL, manifest, other, tmp_path / "export", {}, 1e-4)
    short = replace(manifest, vocab_size=manifest.vocab_size - 1)
    with pytest.raises(DataFault, match="transformers' tokenizer has"):
        export_weights(weights, MODEL, short, tokenizer_dir, tmp_path / "export", {}, 1e-4)
    assert not (tmp_path / "export").exists()


def test_fill_mask_prints_candidates_for_each_mask(exported, capsys, no_network):
    texts = ["One <mask> here.", "Two <mask> and <mask>."]
    assert predict(PredictConfig(model_path=str(exported), text=texts, top_k=3)) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].strip() for line in printed] == [
        texts[0],
        "mask 1",
        texts[1],
        "mask 1",
        "mask 2",
    ]
    probabilities = [float(word) for word in printed[1].split() if word.startswith("0.")]
    assert len(probabilities) == 3
    assert probabilities == sorted(probabilities, reverse=True)


def test_what_fill_mask_cannot_read_is_named(exported, tmp_path):
    for config, message in (
        (PredictConfig(model_path=str(exported), text=["no hole"]), "no hole"),
        (PredictConfig(model_path=str(tmp_path / "gone"), text=["<mask>"]), "gone"),
        (PredictConfig(model_path=str(exported), text=["x" * 500 + "<mask>"]), "500|tokens"),
        (PredictConfig(model_path=str(exported), text=["<mask>"], top_k=9999), "9999"),
    ):
        with pytest.raises(ConfigError, match=message):
            predict(config)


def write_checkpoint(run_dir, weights, config):
    """One complete checkpoint, as one rank that holds every weight whole writes it."""
    folder = layout.step_folder(run_dir / "checkpoints", 7)
    (folder / layout.SHARDS).mkdir(parents=True)
    shard = layout.shard_name(0)
    tensors = {layout.fragment_key("weight", n, 0): w.ravel() for n, w in weights.items()}
    save_file(tensors, folder / shard)
    index = {
        "format_version": layout.FORMAT_VERSION,
        "step": 7,
        "kinds": ["weight"],
        "shapes": {name: list(weight.shape) for name, weight in weights.items()},
        "fragments": [
            {"name": name, "start": 0, "length": weight.size, "file": shard}
            for name, weight in weights.items()
        ],
    }
    write_json(folder / layout.INDEX, index)
    write_json(folder / layout.TRAIN_STATE, {"step": 7, "next_row": 56, "skipped": 0})
    (folder / layout.CONFIG).write_text(to_yaml(config))
    names = (shard, layout.INDEX, layout.TRAIN_STATE, layout.CONFIG)
    recorded = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)}
        for name in names
    }
    write_json(folder / COMPLETE, {"files": recorded})


def test_a_run_is_exported(tmp_path, weights, manifest, tokenizer_dir, capsys, no_network):
    corpus, run_dir = tmp_path / "corpus", tmp_path / "run"
    shutil.copytree(tokenizer_dir, corpus / "tokenizer")
    write_manifest(replace(manifest, folder=corpus / "train", packs=np.zeros(0, PACK_DTYPE)))
    config = PretrainConfig(
        run_dir=str(run_dir),
        data=DataConfig(path=str(corpus), sequence_length=40),
        model=MODEL,
        train=TrainConfig(global_batch_size=8),
    )
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(to_yaml(config))
    (run_dir / "metrics.jsonl").write_text('{"step": 7, "eval_loss": 2.0}\n')
    with pytest.raises(ConfigError, match="has no a complete checkpoint"):
        export_checkpoint(ExportConfig(run_dir=str(run_dir)))
    write_checkpoint(run_dir, weights, config)
    assert export_checkpoint(ExportConfig(run_dir=str(run_dir))) == 0
    assert "exported step 7" in capsys.readouterr().out
    card = (run_dir / "export" / "README.md").read_text()
    for fact in ("| steps | 7 |", "| tokens seen (at most) | 2,240 |", "perplexity | 7.39 |"):
        assert fact in card
    assert str(tmp_path) not in card
    assert predict(PredictConfig(model_path=str(run_dir / "export"), text=["<mask>"])) == 0


def test_the_card_takes_the_last_loss_up_to_its_step(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    assert held_out_loss(metrics, 10) is None
    lines = [{"step": 5, "eval_loss": 4.0}, {"step": 6, "loss": 3.0}, {"step": 20, "eval_loss": 1}]
    metrics.write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 21, "ev')
    assert held_out_loss(metrics, 10) == 4.0
    assert held_out_loss(metrics, 4) is None
    assert held_out_loss(metrics, 20) == 1.0
