"""The options a user sees: each documented, each with a resume class, none changed unknowingly.

tests/golden/options.txt is the list; write it anew with `python tests/unit/config/test_config_surface.py`.
"""

from __future__ import annotations

import ast
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest

from roberta_dist.config import fields as config_fields
from roberta_dist.config.fields import Resume
from roberta_dist.config.roots import VERB_CONFIGS, PretrainConfig

pytestmark = pytest.mark.unit

CONFIG = Path(config_fields.__file__).parent
GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "options.txt"


def options(root: type, prefix: str = "") -> list[str]:
    """`group.key: type, resume class` of every option below `root`."""
    lines, types = [], get_type_hints(root)
    for item in fields(root):
        kind = types[item.name]
        if is_dataclass(kind):
            lines += options(kind, f"{prefix}{item.name}.")
        else:
            name = getattr(kind, "__name__", str(kind)) if isinstance(kind, type) else str(kind)
            lines.append(f"{prefix}{item.name}: {name}, {item.metadata['resume'].value}")
    return lines


def surface() -> str:
    lines = {verb: options(root) for verb, root in sorted(VERB_CONFIGS.items())}
    lines["launch"] = [line for line in lines["launch"] if line not in lines["pretrain"]]
    return "".join(f"{verb} {line}\n" for verb, own in lines.items() for line in own)


def test_options_change_only_knowingly():
    assert surface() == GOLDEN.read_text(encoding="utf-8"), "see the first lines of this file"


def test_every_field_says_what_it_means():
    silent = []
    for path in sorted(CONFIG.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ClassDef):
                continue
            for item, below in zip(node.body, [*node.body[1:], None], strict=True):
                if not isinstance(item, ast.AnnAssign) or "group(" in ast.unparse(item):
                    continue
                documented = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
                if not (documented and len(str(below.value.value)) > 10):
                    silent.append(f"{path.name}: {node.name}.{ast.unparse(item.target)}")
    assert not silent


@pytest.mark.parametrize("verb", VERB_CONFIGS)
def test_every_field_has_a_resume_class(verb):
    def check(root: type) -> None:
        types = get_type_hints(root)
        assert root.__dataclass_params__.frozen
        for item in fields(root):
            if is_dataclass(types[item.name]):
                check(types[item.name])
            else:
                assert isinstance(item.metadata["resume"], Resume), f"{root.__name__}.{item.name}"

    check(VERB_CONFIGS[verb])


def test_what_decides_the_result_is_identity():
    """A new key of these groups must be argued for before it may change on resume."""
    classes = dict(line.split(": ") for line in options(PretrainConfig))
    free = {
        key
        for key, kind in classes.items()
        if key.split(".")[0] in ("data", "masking", "model", "optim", "schedule")
        and not kind.endswith("identity")
    }
    names = ("path", "corpora", "cache_mib", "prefetch_steps", "retry_s", "cache_dir", "cache_gib")
    reading = {f"data.{name}" for name in (*names, "quarantine_packs")}
    # Phases and weights to come may be added; those of rows that were read, or of steps done, are
    # compared.
    extendable = {"data.phases", "data.weights", "schedule.max_steps", "schedule.phases"}
    # Every backend that is accepted gives the same update.
    assert free == reading | extendable | {"optim.backend"}
    assert classes["train.seed"].endswith("identity")
    assert classes["train.global_batch_size"].endswith("identity")


if __name__ == "__main__":
    GOLDEN.write_text(surface(), encoding="utf-8")
