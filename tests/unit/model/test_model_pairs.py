"""The next-sentence head: which token it reads, which rows count, and that it changes nothing else."""

import pytest
import torch
import torch.nn.functional as F

from roberta_dist.config.model import KernelsConfig, ModelConfig
from roberta_dist.model.encoder import RobertaForPretraining
from roberta_dist.model.init import init_weights
from roberta_dist.model.loss import pair_sums

pytestmark = pytest.mark.unit

CONFIG = ModelConfig(num_layers=2, hidden_size=32, ffn_size=48, num_heads=4, max_positions=16)
VOCAB = 133
HEAD = "next_sentence."


def build(pairs=True):
    module = RobertaForPretraining(CONFIG, KernelsConfig(), VOCAB, next_sentence=pairs)
    init_weights(module, 1)
    return module


def pair_batch(lengths, masked, labels):
    generator = torch.Generator().manual_seed(2)
    tokens = sum(lengths)
    return {
        "tokens_T": torch.randint(5, VOCAB, (tokens,), generator=generator),
        "positions_T": torch.cat([torch.arange(length) for length in lengths]),
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).int(),
        "max_seqlen": max(lengths),
        "masked_index_M": torch.arange(masked),
        "labels_M": torch.randint(5, VOCAB, (masked,), generator=generator),
        "nsp_labels_R": torch.tensor(labels),
    }


def gradients(module, loss):
    module.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def test_without_the_head_everything_is_as_it_was():
    """Same names and bits of weights, loss and gradients; also with dropout."""
    batch = pair_batch((16, 2, 7), 5, [1, 0, -1])
    plain = {name: value for name, value in batch.items() if name != "nsp_labels_R"}
    left, right = build(pairs=False), build(pairs=True)
    theirs = right.state_dict()
    assert [n for n in theirs if not n.startswith(HEAD)] == list(left.state_dict())
    assert all(torch.equal(value, theirs[name]) for name, value in left.state_dict().items())
    torch.manual_seed(3)
    loss = left.train()(**plain)
    torch.manual_seed(3)
    sums = right.train()(**batch)
    assert loss.shape == () and sums.shape == (3,)
    assert torch.equal(loss, sums[0])
    grads = gradients(left, loss)
    others = gradients(right, sums[0])
    assert all(torch.equal(grad, others[name]) for name, grad in grads.items())
    assert right(**plain).shape == ()
    with pytest.raises(ValueError, match="no next-sentence head"):
        left(**batch)


def test_the_head_is_bert_s_on_the_first_token_of_each_row():
    lengths, labels = (16, 2, 7, 3), [1, 0, -1, 1]
    batch, module = pair_batch(lengths, 5, labels), build().eval()
    with torch.no_grad():
        for parameter in module.next_sentence.parameters():
            parameter.add_(torch.randn_like(parameter))
    first = torch.tensor([0, 16, 18, 25])
    hidden = module.encode(*(batch[name] for name in list(batch)[:4]))[first].double()
    head = {name: p.double() for name, p in module.next_sentence.named_parameters()}
    pooled = torch.tanh(hidden @ head["dense.weight"].T + head["dense.bias"])
    scores = pooled @ head["classifier.weight"].T + head["classifier.bias"]
    counted = torch.tensor([0, 1, 3])
    expected = F.cross_entropy(scores[counted], torch.tensor([1, 0, 1]), reduction="sum")
    right = sum(int(scores[row].argmax()) == labels[row] for row in counted)
    _, loss, correct = module(**batch)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    assert correct.item() == right


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("masked", "labels"), [(0, [-1, -1, -1]), (0, [1, 0, -1]), (5, [-1] * 3)])
def test_what_is_not_labelled_has_a_finite_zero_loss_and_gradient(masked, labels, dtype):
    module = build().to(dtype)
    sums = module(**pair_batch((16, 2, 7), masked, labels))
    assert sums.dtype == torch.float32 and sums.isfinite().all()
    grads = gradients(module, sums[0] + sums[1])
    assert grads.keys() == dict(module.named_parameters()).keys()
    pairs = any(label >= 0 for label in labels)
    assert (sums[0] > 0) == (masked > 0) and (sums[1] > 0) == pairs
    if not pairs:
        assert sums[2] == 0
    for name, grad in grads.items():
        assert grad.isfinite().all(), name
        if name.startswith(HEAD):
            assert grad.any() == pairs, name
        elif not (masked or pairs):
            assert not grad.any(), name


def test_a_weightless_row_changes_no_sum():
    module = build().eval()
    with_row, without = pair_batch((9, 9, 2), 5, [1, 0, -1]), pair_batch((9, 9), 5, [1, 0])
    with_row["tokens_T"][:18] = without["tokens_T"]
    with_row["labels_M"] = without["labels_M"]
    torch.testing.assert_close(module(**with_row), module(**without))


def test_dropout_lies_between_pooler_and_classifier():
    module, calls = build().train(), []
    module.next_sentence.dropout.register_forward_hook(lambda part, *_: calls.append(part.p))
    module(**pair_batch((8, 8), 3, [1, 0]))
    assert calls == [CONFIG.dropout]


def test_initial_weights_follow_the_rule_of_the_others():
    head = build().next_sentence
    assert abs(head.dense.weight.std().item() - 0.02) < 1e-3
    assert 0.01 < head.classifier.weight.std().item() < 0.03
    assert not head.dense.bias.any() and not head.classifier.bias.any()


@pytest.mark.parametrize("rows", [0, 1, 64])
def test_pair_sums_equal_a_sum_over_the_labelled_rows(rows):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(rows, 2, generator=generator)
    labels = torch.randint(-1, 2, (rows,), generator=generator)
    loss, correct = pair_sums(logits, labels)
    kept = labels >= 0
    log_p = logits.double().log_softmax(1)[kept].gather(1, labels[kept, None])
    torch.testing.assert_close(loss.double(), -log_p.sum(), rtol=1e-6, atol=1e-6)
    assert correct.item() == (logits[kept].argmax(1) == labels[kept]).sum().item()
