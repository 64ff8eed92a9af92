"""Libraries that only some settings of prepare need, imported when they do."""

from __future__ import annotations

import importlib
from typing import Any

from roberta_dist.errors import ConfigError


def load_extra(module: str, wanted_by: str) -> Any:
    """Import `module` of the extra `sources`.

    Args:
        module: dotted name.
        wanted_by: the setting that needs it, as in `corpus.source=parquet`.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{wanted_by}: needs {module.partition('.')[0]}, which cannot be imported ({error})",
            "pip install 'roberta_dist[sources]'",
        ) from error
