"""Our encoder and transformers' RobertaForMaskedLM: same weights, same numbers."""

import numpy as np
import pytest
import torch

from roberta_dist.config.model import KernelsConfig, ModelConfig
from roberta_dist.corpus.manifest import SpecialTokens
from roberta_dist.interop.huggingface import from_hf_state_dict, hf_config, to_hf_state_dict
from roberta_dist.model.encoder import RobertaForPretraining
from roberta_dist.model.init import init_weights

pytestmark = pytest.mark.unit

SPECIAL = SpecialTokens(bos=0, pad=1, eos=2, unk=3, mask=4)
SMALL = ModelConfig(num_layers=2, hidden_size=64, ffn_size=128, num_heads=4, max_positions=32)
ODD = ModelConfig(
    num_layers=3,
    hidden_size=42,
    ffn_size=55,
    num_heads=3,
    max_positions=19,
    layer_norm_eps=1e-2,
)
CASES = [
    pytest.param(SMALL, 256, (32, 32, 32), id="small-full"),
    pytest.param(SMALL, 301, (32, 7, 2, 19), id="small-padded-vocab-301"),
    pytest.param(ODD, 67, (19, 19), id="odd-full"),
    pytest.param(ODD, 129, (5, 19, 2), id="odd-padded"),
    pytest.param(ODD, 129, (5, 9, 2), id="odd-padded-short-of-max-positions"),
]


def numpy_state(module):
    return {name: value.detach().numpy().copy() for name, value in module.state_dict().items()}


def randomize(module, seed):
    """Every weight away from its initial value, so that no bias, norm or pad row is trivial."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def ours(model, vocab_size):
    module = RobertaForPretraining(model, KernelsConfig(), vocab_size)
    init_weights(module, seed=3)
    return module.eval()


def theirs(model, vocab_size):
    from transformers import RobertaConfig, RobertaForMaskedLM

    return RobertaForMaskedLM(RobertaConfig(**hf_config(model, vocab_size, SPECIAL))).eval()


def rows(vocab_size, lengths):
    """The same rows flat (ours) and padded (theirs), with predicted positions in both."""
    generator = torch.Generator().manual_seed(7)
    longest = max(lengths)
    ids = torch.randint(5, vocab_size, (len(lengths), longest), generator=generator)
    attention = torch.arange(longest) < torch.tensor(lengths)[:, None]
    ids[~attention] = SPECIAL.pad
    chosen = attention & (torch.rand(ids.shape, generator=generator) < 0.3)
    chosen[0, 1] = True
    labels = torch.where(chosen, (ids + 1) % vocab_size, -100)
    flat = {
        "tokens_T": ids[attention],
        "positions_T": torch.arange(longest).expand_as(ids)[attention],
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).int(),
        "max_seqlen": longest,
    }
    masked = {
        "masked_index_M": chosen[attention].nonzero().squeeze(1),
        "labels_M": labels[attention][chosen[attention]],
    }
    return flat, masked, {"input_ids": ids, "attention_mask": attention.long()}, labels, attention


def relative(found, expected):
    return float(np.linalg.norm(found - expected) / (np.linalg.norm(expected) + 1e-30))


def compare(our_module, their_module, model, vocab_size, lengths):
    """Relative differences of logits, loss and gradients; asserts that each is small."""
    flat, masked, padded, labels, attention = rows(vocab_size, lengths)
    everywhere = torch.arange(flat["tokens_T"].numel())
    found = our_module.logits(**flat, masked_index_M=everywhere).detach()
    expected = their_module(**padded).logits[attention].detach()
    assert found.shape == expected.shape
    largest = float((found - expected).abs().max() / expected.abs().max())
    logits = max(relative(found.numpy(), expected.numpy()), largest)
    assert logits <= 1e-5

    loss = our_module(**flat, **masked)
    their_loss = their_module(**padded, labels=labels).loss * len(masked["labels_M"])
    loss_difference = abs(loss.item() - their_loss.item()) / abs(their_loss.item())
    assert loss_difference <= 1e-4

    loss.backward()
    their_loss.backward()
    gradients = compare_gradients(our_module, their_module, model, vocab_size)
    return {"logits": logits, "loss": loss_difference, "gradients": gradients}


def compare_gradients(our_module, their_module, model, vocab_size):
    grads = {name: p.grad.numpy() for name, p in our_module.named_parameters()}
    assert not grads["vocabulary.weight"][vocab_size:].any()
    assert not grads["vocabulary.bias"][vocab_size:].any()
    found_grads = to_hf_state_dict(grads, model, vocab_size)
    differences = {}
    for name, parameter in their_module.named_parameters():
        if "token_type" in name:
            continue
        expected_grad = parameter.grad.numpy()
        if name.endswith("key.bias"):  # exactly zero in theory: softmax ignores a common shift
            differences[name] = float(np.abs(found_grads[name] - expected_grad).max())
        else:
            differences[name] = relative(found_grads[name], expected_grad)
        assert differences[name] <= 1e-4, name
    assert len(differences) == len(found_grads) - 1
    return max(differences.values())


def relative_differences(model, vocab_size, lengths, ours_first):
    """Random weights of one model put into the other."""
    our_module, their_module = ours(model, vocab_size), theirs(model, vocab_size)
    if ours_first:
        randomize(our_module, seed=11)
        state = to_hf_state_dict(numpy_state(our_module), model, vocab_size)
        tensors = {name: torch.from_numpy(value) for name, value in state.items()}
        result = their_module.load_state_dict(tensors, strict=False)
        assert not result.unexpected_keys
        assert set(result.missing_keys) <= {"lm_head.decoder.weight", "lm_head.decoder.bias"}
    else:
        randomize(their_module, seed=13)
        weights = from_hf_state_dict(numpy_state(their_module), model, vocab_size)
        tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
        our_module.load_state_dict(tensors, strict=True)
    return compare(our_module, their_module, model, vocab_size, lengths)


@pytest.mark.parametrize("ours_first", [True, False], ids=["ours-to-theirs", "theirs-to-ours"])
@pytest.mark.parametrize(("model", "vocab_size", "lengths"), CASES)
def test_same_weights_same_numbers(model, vocab_size, lengths, ours_first):
    relative_differences(model, vocab_size, lengths, ours_first)
