"""How a process that had ranks ends: without tearing the interpreter down."""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import suppress
from typing import NoReturn


def end_process(code: int) -> NoReturn:
    """Run the exit handlers, flush the output and leave with `code`.

    A gloo thread that frees its last tensor while the interpreter is being torn down asks for the
    lock of an interpreter that is gone and aborts the process ("terminate called without an active
    exception", exit code -6), after all work was done (PyTorch 2.13, pull request 179291).
    `destroy_process_group` does not end these threads as long as anything holds the group, and
    DeepSpeed does.
    """
    atexit._run_exitfuncs()
    with suppress(OSError, ValueError):  # nobody may be listening any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
