"""What must not be written into a run folder."""

from __future__ import annotations

import re

from roberta_dist.config.fields import require

NAME = re.compile(
    r"(^|_)TOKENS?(_|$)|SECRET|PASSW(OR)?D|PASSPHRASE|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY"
    r"|(^|_)(PASS|PWD|PAT)$",
    re.IGNORECASE,
)
URL = re.compile(r"://[^/\s:@]*:[^/\s@]+@")
ASSIGNMENT = re.compile(r"""(?<![\w$])([A-Za-z_]\w*)=(["']?)([^\s"';]*)""")


def refuse_secret(key: str, name: str, value: str) -> None:
    """Refuse a variable that looks like a secret, by its name or by a password in a URL.

    Raises:
        ConfigError: it does; its value is not told.
    """
    require(
        not NAME.search(name) and not URL.search(value),
        key,
        name,
        "looks like a secret, which would be written into the run folder",
        "export it in the shell that runs `launch`: the workers get it from there",
    )


def refuse_secrets_in_shell(key: str, line: str) -> None:
    """Refuse a line of shell that gives such a variable a value of its own (`KEY=$(cat file)` is none).

    Raises:
        ConfigError: it does.
    """
    for name, _, value in ASSIGNMENT.findall(line):
        if value and not value.startswith(("$", "`")):
            refuse_secret(key, name, value)
