"""Compiled once: no graph break and no recompilation, whatever rows and masked counts come, and no
digit that depends on the batch it was compiled for, or a resumed run would differ. (On a CPU torch adds
up columns of more than 4,096 numbers in another way, so that each side of that has graphs of its own.)

Counted by torch's own counters. In processes of their own, since counters and caches are torch's for
the process.
"""

import json
import os
import subprocess
import sys

PROGRAM = """
import hashlib, json, sys
import torch
from torch._dynamo.utils import counters
from roberta_dist.config.model import Fusion, KernelsConfig, ModelConfig
from roberta_dist.model.encoder import RobertaForPretraining
from roberta_dist.model.init import init_weights

steps, warmup, equal = map(int, sys.argv[1:4])
device = torch.device(sys.argv[4])
VOCAB, WIDTH, LONGEST, LONG_SUM = 133, 32, 64, 4096
config = ModelConfig(num_layers=2, hidden_size=WIDTH, ffn_size=64, num_heads=2, max_positions=LONGEST)
module = RobertaForPretraining(config, KernelsConfig(fusion=Fusion.compiled), VOCAB)
init_weights(module, 1)
module.to(device)
generator = torch.Generator().manual_seed(1)

def whole(low, high):
    return int(torch.randint(low, high, (), generator=generator))

def batch(step):
    if step == 0 and equal:  # as many tokens as the model is wide, as many queries as keys
        lengths = [WIDTH]
    elif step % 3 == 2:
        lengths = [LONGEST - step % 2] * (LONG_SUM // LONGEST + 2 + step)
    else:
        lengths = [whole(2, LONGEST + 1) for _ in range(whole(1, 9))]
    tokens, masked = sum(lengths), whole(0, sum(lengths))
    masked = {3: 0, 4: 1}.get(step, masked)
    if step % 3 == 2:
        masked = max(masked, LONG_SUM + 1)
    whole_batch = dict(
        tokens_T=torch.randint(5, VOCAB, (tokens,), generator=generator),
        positions_T=torch.cat([torch.arange(length) for length in lengths]),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        max_seqlen=max(lengths),
        masked_index_M=torch.randperm(tokens, generator=generator)[:masked],
        labels_M=torch.randint(5, VOCAB, (masked,), generator=generator),
    )
    return {k: v if isinstance(v, int) else v.to(device) for k, v in whole_batch.items()}

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
module.train()
module.zero_grad()
generator.manual_seed(7)
torch.manual_seed(7)
module(**batch(1)).backward()
digest = hashlib.sha256(b"".join(p.grad.cpu().numpy().tobytes() for p in module.parameters()))
print(json.dumps([before, counted(), digest.hexdigest()]))
"""


WARM_UP = 3
"""Steps after which short and long sums were seen."""


def start(
    steps: int, warmup: int, equal: bool, device: str = "cpu", **environment: str
) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(steps), str(warmup), str(int(equal)), device]
    environ = os.environ | environment
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[dict[str, int], dict[str, int], str]:
    """Counts after the warm-up, at the end, and a digest of the gradients of one fixed batch."""
    output, _ = process.communicate()
    assert process.returncode == 0
    before, after, digest = json.loads(output.splitlines()[-1])
    return before, after, digest


def graphs(
    steps: int, warmup: int, equal: bool, device: str = "cpu"
) -> tuple[dict[str, int], dict[str, int]]:
    """Counts after `warmup` and after `steps` steps of training and evaluation."""
    return finish(start(steps, warmup, equal, device))[:2]


def test_nothing_is_compiled_after_the_first_step_and_its_batch_decides_no_digit(tmp_path):
    runs = [
        start(steps, WARM_UP, equal, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / str(steps)))
        for steps, equal in ((50, True), (WARM_UP, False))
    ]
    (before, after, digest), (_, _, other) = map(finish, runs)
    assert before["graphs"] >= 2 * 4  # four pieces forward, with and without dropout, and one more
    assert after == before
    assert after["breaks"] == 0
    assert digest == other
