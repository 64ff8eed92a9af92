"""The program on a machine with the script in its first argument in place of the trainer."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import patch

from roberta_dist.launcher.node import main
from roberta_dist.runtime.leave import end_process

if __name__ == "__main__":
    with patch("roberta_dist.launcher.node.worker_script", return_value=Path(sys.argv[1])):
        end_process(main())
