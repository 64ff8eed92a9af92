"""Names and shapes on the way to transformers and back."""

import numpy as np
import pytest
import torch

from roberta_dist.config.model import KernelsConfig, ModelConfig
from roberta_dist.corpus.manifest import SpecialTokens
from roberta_dist.errors import DataFault
from roberta_dist.interop.huggingface import (
    from_hf_state_dict,
    has_next_sentence,
    hf_config,
    to_hf_state_dict,
)
from roberta_dist.model.encoder import RobertaForPretraining

pytestmark = pytest.mark.unit

MODEL = ModelConfig(num_layers=2, hidden_size=8, ffn_size=12, num_heads=2, max_positions=6)
VOCAB = 70
TYPE = "roberta.embeddings.token_type_embeddings.weight"
POSITION = "roberta.embeddings.position_embeddings.weight"


@pytest.fixture
def weights():
    with torch.device("meta"):
        module = RobertaForPretraining(MODEL, KernelsConfig(), VOCAB)
    generator = np.random.default_rng(1)
    drawn = {
        name: generator.normal(size=tuple(parameter.shape)).astype(np.float32)
        for name, parameter in module.named_parameters()
    }
    drawn["vocabulary.weight"][VOCAB:] = 0.0
    drawn["vocabulary.bias"][VOCAB:] = 0.0
    return drawn


def test_there_and_back_is_the_same_bits(weights):
    back = from_hf_state_dict(to_hf_state_dict(weights, MODEL, VOCAB), MODEL, VOCAB)
    assert back.keys() == weights.keys()
    assert all(np.array_equal(back[name], weights[name]) for name in weights)


def next_sentence_head():
    with torch.device("meta"):
        module = RobertaForPretraining(MODEL, KernelsConfig(), VOCAB, next_sentence=True)
    head = {n: p for n, p in module.named_parameters() if n.startswith("next_sentence.")}
    assert len(head) == 4
    return {name: np.ones(tuple(p.shape), np.float32) for name, p in head.items()}


def test_a_next_sentence_head_is_left_out(weights):
    head = next_sentence_head()
    assert has_next_sentence(weights | head) and not has_next_sentence(weights)
    left, right = (to_hf_state_dict(w, MODEL, VOCAB) for w in (weights, weights | head))
    assert left.keys() == right.keys()
    assert all(np.array_equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("name", next_sentence_head())
def test_a_next_sentence_head_is_whole_or_absent(weights, name):
    head = next_sentence_head()
    with pytest.raises(DataFault, match=f"{name} has shape"):
        to_hf_state_dict(weights | head | {name: np.zeros((3, 3))}, MODEL, VOCAB)
    part = {n: value for n, value in head.items() if n != name}
    with pytest.raises(DataFault, match=f"{name} is missing|unknown weights"):
        to_hf_state_dict(weights | part, MODEL, VOCAB)
    with pytest.raises(DataFault, match=r"unknown weights, the first next_sentence\.scale"):
        to_hf_state_dict(weights | head | {"next_sentence.scale": np.zeros(1)}, MODEL, VOCAB)


def test_the_vocabulary_s_padding_does_not_leave(weights):
    state = to_hf_state_dict(weights, MODEL, VOCAB)
    assert state["roberta.embeddings.word_embeddings.weight"].shape == (VOCAB, 8)
    assert state["lm_head.bias"].shape == (VOCAB,)
    assert not state[TYPE].any()


def test_a_token_type_row_is_folded_into_the_positions(weights):
    state = to_hf_state_dict(weights, MODEL, VOCAB)
    state[TYPE] = np.full((1, 8), 0.5, np.float32)
    found = from_hf_state_dict(state, MODEL, VOCAB)["positions.weight"]
    assert np.array_equal(found, state[POSITION] + 0.5)


def test_what_transformers_stores_twice_or_never_uses_is_accepted(weights):
    state = to_hf_state_dict(weights, MODEL, VOCAB)
    state["lm_head.decoder.weight"] = state["roberta.embeddings.word_embeddings.weight"]
    state["lm_head.decoder.bias"] = state["lm_head.bias"]
    state["roberta.pooler.dense.weight"] = np.zeros((8, 8))
    state["roberta.embeddings.position_ids"] = np.arange(8)[None]
    found = from_hf_state_dict(state, MODEL, VOCAB)
    assert all(np.array_equal(found[name], weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lm_head.decoder.weight": np.ones((VOCAB, 8))}, "lm_head.decoder.weight is not tied"),
        ({"lm_head.bias": np.zeros(VOCAB + 1)}, r"shape \[71\], expected \[70\]"),
        ({TYPE: np.zeros((2, 8))}, r"shape \[2, 8\], expected \[1, 8\]"),
        ({"roberta.encoder.layer.2.output.dense.bias": np.zeros(8)}, "1 unknown weights"),
        ({"roberta.encoder.layer.0.attention.self.key.bias": None}, "key.bias is missing"),
    ],
)
def test_a_state_dict_of_another_model_is_refused(weights, change, message):
    state = {**to_hf_state_dict(weights, MODEL, VOCAB), **change}
    with pytest.raises(DataFault, match=message):
        from_hf_state_dict(
            {name: value for name, value in state.items() if value is not None}, MODEL, VOCAB
        )


def test_pad_must_be_where_positions_are_counted_from():
    with pytest.raises(DataFault, match=r"special_tokens\.pad=0"):
        hf_config(MODEL, VOCAB, SpecialTokens(bos=1, pad=0, eos=2, unk=3, mask=4))
