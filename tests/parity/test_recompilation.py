"""Compiled once: no graph break and no recompilation, whatever rows and masked counts come.

Counted by torch's own counters. In a process of its own, since they are torch's for the process.
"""

import json
import subprocess
import sys

PROGRAM = """
import json, sys
import torch
from torch._dynamo.utils import counters
from roberta_dist.config.model import Fusion, KernelsConfig, ModelConfig
from roberta_dist.model.encoder import RobertaForPretraining
from roberta_dist.model.init import init_weights

steps, warmup, equal = map(int, sys.argv[1:])
VOCAB, WIDTH, LONGEST = 133, 32, 64
config = ModelConfig(num_layers=2, hidden_size=WIDTH, ffn_size=64, num_heads=2, max_positions=LONGEST)
module = RobertaForPretraining(config, KernelsConfig(fusion=Fusion.compiled), VOCAB)
init_weights(module, 1)
generator = torch.Generator().manual_seed(1)

def whole(low, high):
    return int(torch.randint(low, high, (), generator=generator))

def batch(step):
    if step == 0 and equal:  # as many tokens as the model is wide, as many queries as keys
        lengths = [WIDTH]
    else:
        lengths = [whole(2, LONGEST + 1) for _ in range(whole(1, 9))]
    tokens, masked = sum(lengths), whole(0, sum(lengths))
    return dict(
        tokens_T=torch.randint(5, VOCAB, (tokens,), generator=generator),
        positions_T=torch.cat([torch.arange(length) for length in lengths]),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        max_seqlen=max(lengths),
        masked_index_M=torch.randperm(tokens, generator=generator)[:masked],
        labels_M=torch.randint(5, VOCAB, (masked,), generator=generator),
    )

def counted():
    return {
        "graphs": counters["stats"]["unique_graphs"],
        "breaks": sum(counters["graph_break"].values()),
    }

for step in range(steps):
    module.train()
    module(**batch(step)).backward()
    module.eval()
    with torch.no_grad():
        module(**batch(step + 1))
    if step + 1 == warmup:
        before = counted()
print(json.dumps([before, counted()]))
"""


def graphs(steps: int, warmup: int, equal: bool) -> tuple[dict[str, int], dict[str, int]]:
    """Counts after `warmup` and after `steps` steps of training and evaluation."""
    command = [sys.executable, "-c", PROGRAM, str(steps), str(warmup), str(int(equal))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    before, after = json.loads(done.stdout.splitlines()[-1])
    return before, after


def test_nothing_is_compiled_after_the_first_step():
    before, after = graphs(steps=50, warmup=1, equal=True)
    assert before["graphs"] >= 2 * 4  # four pieces forward, with and without dropout, and one more
    assert after == before
    assert after["breaks"] == 0
