"""From yaml and overrides to frozen dataclasses. The only module that knows Hydra and OmegaConf.

OmegaConf refuses to merge into a frozen structured node (omegaconf #1102); the read-only flag of
the base is cleared first, and `to_object` builds the frozen dataclasses after validation.
"""

from __future__ import annotations

import itertools
import math
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from roberta_dist.config.fields import Resume, require
from roberta_dist.errors import ConfigError, RobertaDistError

C = TypeVar("C")


def conf_dir() -> Path:
    """The folder of yaml files: the checkout's `conf/`, or the one a wheel installed."""
    checkout = Path(__file__).resolve().parents[2] / "conf"
    if (checkout / "pretrain.yaml").is_file():
        return checkout
    installed = Path(sys.prefix) / "share" / "roberta_dist" / "conf"
    if (installed / "pretrain.yaml").is_file():
        return installed
    raise ConfigError(
        f"no configuration found in {checkout} or {installed}",
        "reinstall roberta_dist: its wheel carries conf/",
    )


def _clear_readonly(node: DictConfig) -> None:
    OmegaConf.set_readonly(node, None)
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig):
            _clear_readonly(child)


def to_dataclass(root: type[C], values: Any) -> C:
    """Check `values` (a mapping or DictConfig) against `root` and build it.

    Raises:
        ConfigError: an unknown key, a wrong type, a missing or an impossible value.
    """
    base = OmegaConf.structured(root)
    _clear_readonly(base)
    try:
        built = OmegaConf.to_object(OmegaConf.merge(base, values))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "configuration"
        first_line = str(error).splitlines()[0]
        raise ConfigError(f"{key}: {first_line}", "see `roberta-dist VERB --cfg job`") from error
    assert isinstance(built, root)
    for key, value in flatten(built).items():
        if isinstance(value, float):
            require(math.isfinite(value), key, value, "must be a finite number")
    return built


def load_yaml(root: type[C], path: Path) -> C:
    """Read a resolved configuration, as a worker does: nothing is composed again."""
    try:
        values = OmegaConf.load(path)
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{path}: {error}", "give the RUN/config.yaml that launch wrote"
        ) from error
    return to_dataclass(root, values)


def read_values(path: Path) -> dict[str, Any]:
    """A configuration as plain values, unchecked: for a look at a run that any version wrote.

    Raises:
        ConfigError: no file, or no yaml.
    """
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: {error}", "give the folder of a run") from error
    return {str(key): value for key, value in values.items()} if isinstance(values, dict) else {}


def to_yaml(config: Any) -> str:
    """The yaml of a frozen configuration; `load_yaml` gives the same object back."""
    return OmegaConf.to_yaml(OmegaConf.create(_escaped(asdict(config))))


def _escaped(value: Any) -> Any:
    """`${` in a value that is already resolved means itself: a worker must not resolve it again."""
    if isinstance(value, str) and not isinstance(value, Enum):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    return [_escaped(item) for item in value] if isinstance(value, list) else value


def compose(verb: str, root: type[C], overrides: Sequence[str] = ()) -> C:
    """Compose `conf/VERB.yaml` with Hydra overrides, in this process; also from inside a verb.

    Raises:
        ConfigError: the overrides do not compose, or a value cannot be.
    """
    GlobalHydra.instance().clear()  # a verb has composed its own configuration by then
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        try:
            composed = hydra.compose(verb, overrides=list(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(f"{verb}: {error}", f"see `roberta-dist {verb} --cfg job`") from error
        return to_dataclass(root, composed)


def run_sweep(
    verb: str, root: type[C], action: Callable[[dict[str, C]], int], words: Sequence[str]
) -> int:
    """Run one verb on all combinations of the values that `words` give, as one call.

    Hydra's `--multirun` would call the verb once for each, which then could not be one job array.

    Returns:
        The action's exit code; a configuration that does not compose gives 2.
    """
    return _exit_code(
        verb,
        lambda: action({k: compose(verb, root, own) for k, own in combinations(words).items()}),
    )


def combinations(words: Sequence[str]) -> dict[str, list[str]]:
    """`a=1,2 b=x c=3,4` → four lists of overrides, each by its swept part, `a=1,c=3` and so on.

    Values are swept by Hydra's grammar: `1,2`, `choice(1,2)`, `range(1,4)`.

    Raises:
        ConfigError: a word is no override, a combination comes twice, or there is none.
    """
    # by key: a later word for one replaces an earlier
    choices: dict[str, list[tuple[str, bool]]] = {}
    try:
        for override in OverridesParser.create().parse_overrides(list(words)):
            key = override.get_key_element()
            if override.is_sweep_override():
                values = override.sweep_string_iterator()
                choices[key] = [(f"{key}={value}", True) for value in values]
            else:
                choices[key] = [(str(override.input_line), False)]
    except HydraException as error:
        raise ConfigError(f"--multirun: {error}", "write key=value1,value2") from error
    found = {}
    for chosen in itertools.product(*choices.values()):
        name = ",".join(word for word, swept in chosen if swept)
        if name in found:
            raise ConfigError(
                f"--multirun: {name or 'one run'} comes twice", "give each value once"
            )
        found[name] = [word for word, _ in chosen]
    require(bool(found), "--multirun", " ".join(words), "a range holds no value")
    return found


def _exit_code(verb: str, action: Callable[[], int]) -> int:
    """What `action` returns, or the exit code of the error that it raised and that is told here."""
    try:
        return action()
    except RobertaDistError as error:
        print(f"roberta-dist {verb}: {error}", file=sys.stderr)
        return error.exit_code
    except Exception:  # Hydra would exit 1, as it does where overrides do not compose
        traceback.print_exc()
        return RobertaDistError.exit_code


def run_verb(verb: str, root: type[C], action: Callable[[C], int], arguments: Sequence[str]) -> int:
    """Run one verb as a Hydra application (`key=value`, `--cfg job`, `--help`, `--multirun`).

    Returns:
        The verb's exit code; a configuration that does not compose gives 2.
    """
    exit_codes: list[int] = []

    def application(composed: DictConfig) -> None:
        exit_codes.append(_exit_code(verb, lambda: action(to_dataclass(root, composed))))

    saved_argv, sys.argv = sys.argv, [f"roberta-dist {verb}", *arguments]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=verb)(application)()
    except SystemExit as stop:
        # Hydra prints its own message and exits 1 when the overrides do not compose.
        return ConfigError.exit_code if stop.code else max(exit_codes, default=0)
    finally:
        sys.argv = saved_argv
    return max(exit_codes, default=0)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """A frozen configuration as `{"group.key": value}`."""
    flat: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            flat.update(flatten(value, f"{prefix}{item.name}."))
        else:
            flat[f"{prefix}{item.name}"] = value
    return flat


def resume_classes(config: Any, prefix: str = "") -> dict[str, Resume]:
    """The class (identity, free, extendable) of each `group.key`."""
    classes: dict[str, Resume] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            classes.update(resume_classes(value, f"{prefix}{item.name}."))
        else:
            classes[f"{prefix}{item.name}"] = item.metadata["resume"]
    return classes
