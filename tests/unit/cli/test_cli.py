from __future__ import annotations

import pytest

from roberta_dist import cli
from roberta_dist.config.roots import VERB_CONFIGS
from roberta_dist.errors import DataFault

pytestmark = pytest.mark.unit


def test_help_names_every_verb(capsys):
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {verb} " in printed for verb in VERB_CONFIGS)
    assert set(cli.VERBS) == set(VERB_CONFIGS)


def test_no_verb_and_unknown_verb(capsys):
    assert cli.main([]) == 2
    assert cli.main(["tarin"]) == 2
    assert "tarin" in capsys.readouterr().err


def test_cfg_job(capsys):
    assert cli.main(["pretrain", "--cfg", "job", "schedule.max_steps=7"]) == 0
    assert "max_steps: 7" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("outcome", "code"), [(0, 0), (4, 4), (DataFault("x"), 3), (RuntimeError("bug"), 1)]
)
def test_exit_codes(monkeypatch, capsys, outcome, code):
    def run(verb, config):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(cli, "_run", run)
    assert cli.main(["launch"]) == code


def test_ctrl_c(monkeypatch, capsys):
    def interrupted(verb, config):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupted)
    assert cli.main(["launch"]) == 130
