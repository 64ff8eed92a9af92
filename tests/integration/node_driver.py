"""The program on a machine with a script (first argument) in place of the trainer.

The second argument is the silence of `launch`, in seconds, after which it ends the workers.
"""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import patch

from roberta_dist.launcher.node import main
from roberta_dist.runtime.leave import end_process

if __name__ == "__main__":
    node = "roberta_dist.launcher.node"
    with (
        patch(f"{node}.worker_script", return_value=Path(sys.argv[1])),
        patch(f"{node}.SILENCE_S", float(sys.argv[2])),
    ):
        end_process(main())
