"""What a launch would start, for people: pure text."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence


def describe_start(
    command: Sequence[str],
    before: Mapping[str, str],
    after: Mapping[str, str],
    secret: Collection[str] = (),
) -> str:
    """A command line and how its environment differs from ours, both as a shell would read them.

    Args:
        command: what is started.
        before: our environment.
        after: that of the command.
        secret: names whose values are not shown.
    """
    lines = []
    for name in sorted(before.keys() - after.keys()):
        lines.append(f"  unset {name}")
    for name in sorted(after):
        if name in secret:
            lines.append(f"  export {name}=…")
        elif after[name] != before.get(name):
            lines.append(f"  export {name}={shlex.quote(after[name])}")
    return "\n".join([*lines, "  " + shlex.join(command)])
