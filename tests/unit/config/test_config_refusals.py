"""What a user gets for a configuration that cannot work: exit code 2 and a sentence to act on."""

from __future__ import annotations

import pytest

from roberta_dist import cli

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def nothing_is_started(monkeypatch):
    def started(verb, config):
        pytest.fail(f"{verb} was started with {config}")

    monkeypatch.setattr(cli, "_run", started)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        # unknown
        ("launch optim.learning_rate=1", ["optim.learning_rate", "not in struct"]),
        ("launch +optim.learning_rate=1", ["optim.learning_rate", "OptimConfig", "remedy"]),
        ("launch colour=red", ["colour", "not in struct"]),
        ("launch model=huge", ["model/huge", "base", "large", "mini", "tiny"]),
        ("launch experiment=nope", ["experiment/nope", "quickstart", "roberta_base"]),
        ("launch kernels.attention=xformers", ["kernels.attention", "xformers", "auto", "sdpa"]),
        # wrong type
        ("launch optim.lr=fast", ["optim.lr", "fast", "Float", "remedy"]),
        ("launch train.global_batch_size=1.5", ["train.global_batch_size", "1.5", "Integer"]),
        ("launch train.seed=null", ["train.seed", "None", "int"]),
        ("launch checkpoint.keep_best=maybe", ["checkpoint.keep_best", "maybe", "bool"]),
        ("launch engine.precision=fp8", ["engine.precision", "fp8", "fp32", "bf16"]),
        # impossible value
        ("launch train.micro_batch_size=1.5", ["train.micro_batch_size", "1.5", "int", "remedy"]),
        ("launch train.micro_batch_size=0", ["train.micro_batch_size=0", "positive", "auto"]),
        ("launch train.micro_batch_size=all", ["train.micro_batch_size=all", "positive", "auto"]),
        ("launch train.memory_budget_mib=-1", ["train.memory_budget_mib=-1", "≥ 0"]),
        (
            "launch train.profile=[13,10]",
            ["train.profile=[13, 10]", "later one", "remedy", "[10,13]"],
        ),
        ("launch train.profile=[0,3]", ["train.profile=[0, 3]", "from 1"]),
        ("launch train.profile=[10]", ["train.profile=[10]", "first step"]),
        (
            "launch train.profile=[500,502] experiment=quickstart",
            ["train.profile=[500, 502]", "beyond schedule.max_steps=500", "[…,501]"],
        ),
        (
            "launch train.profile_memory=true",
            ["train.profile_memory=True", "needs the steps", "add train.profile"],
        ),
        ("launch optim.lr=-1", ["optim.lr=-1.0", "must be positive"]),
        ("launch optim.lr=inf", ["optim.lr=inf", "must be a finite number"]),
        ("launch optim.beta2=1", ["optim.beta2=1.0", "[0, 1)"]),
        ("launch model.num_heads=7", ["model.num_heads=7", "must divide model.hidden_size=768"]),
        ("launch schedule.max_steps=10", ["schedule.warmup_steps=24000", "schedule.max_steps=10"]),
        (
            "launch data.sequence_length=1024",
            ["data.sequence_length=1024", "model.max_positions=512", "remedy", "raise"],
        ),
        (
            "launch engine.stage=0 engine.precision=bf16",
            ["engine.stage=0", "fp32", "use engine.stage=1"],
        ),
        ("launch engine.stage=4", ["engine.stage=4", "0, 1, 2 or 3"]),
        ("launch masking.random_fraction=0.5", ["masking.random_fraction=1.3", "sum ≤ 1"]),
        (
            "launch masking.unit=span",
            ["masking.selection=bernoulli", "unit=span", "masking.selection=exact"],
        ),
        ("launch masking.static_duplicates=0", ["masking.static_duplicates=0", "≥ 1"]),
        ("launch masking.max_word_tokens=0", ["masking.max_word_tokens=0", "≥ 1"]),
        ("launch masking=span masking.max_span=0", ["masking.max_span=0", "≥ 1"]),
        ("launch masking=span masking.span_p=0.0", ["masking.span_p=0.0", "(0, 1]"]),
        ("launch cluster.workers_per_node=-1", ["cluster.workers_per_node=-1", "≥ 0"]),
        ("launch evaluate.seed=-1", ["evaluate.seed=-1", "≥ 0"]),
        (
            "launch data.corpora={a:x,b:y} data.weights={a:inf,b:1}",
            ["data.weights", "inf", "finite sum"],
        ),
        ("launch data.corpora={}", ["data.corpora={}", "names no corpus"]),
        (
            "launch schedule.max_steps=9 schedule.warmup_steps=1 data.phases=[{from_step:9}]",
            ["from_step=9", "beyond schedule.max_steps=9"],
        ),
        (
            "launch schedule.warmup_fraction=0.06",
            ["warmup_steps=24000", "warmup_fraction=0.06", "set schedule.warmup_steps=0"],
        ),
        ("launch schedule.decay=wsd", ["schedule.decay=wsd", "decay_fraction", "schedule=wsd"]),
        ("launch schedule.decay=sqrt", ["schedule.decay", "sqrt", "inverse_sqrt", "cosine"]),
        (
            "launch schedule.phases=[{from_step:500000,lr:0.001}]",
            ["schedule.phases: from_step=500000", "before schedule.max_steps=500000"],
        ),
        ("launch schedule.phases=[{from_step:90000}]", ["schedule.phases: lr=0.0", "positive"]),
        ("launch run_dir=", ["run_dir=''", "is empty", "run_dir=FOLDER"]),
        ("prepare corpus=text corpus.paths=[]", ["corpus.paths=[]", "corpus.source=text"]),
        ("prepare corpus.pack_mib=0", ["corpus.pack_mib=0.0", "must be positive"]),
        # missing
        ("export", ["run_dir", "missing mandatory"]),
        ("evaluate", ["run_dir, model_path", "exactly one", "run_dir=RUN"]),
        ("predict model_path=x", ["text=[]", "is empty", "<mask>"]),
    ],
)
def test_a_bad_configuration_is_explained(command, said, capfd):
    assert cli.main(command.split()) == 2
    message = capfd.readouterr().err
    assert not [part for part in said if part not in message], message
    assert "Traceback" not in message
