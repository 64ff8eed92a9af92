"""`roberta-dist launch` with launch_worker.py in place of the trainer."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import patch

from roberta_dist.cli import main

WORKER = Path(__file__).with_name("launch_worker.py")

if __name__ == "__main__":
    with patch("roberta_dist.launcher.local.worker_script", return_value=WORKER):
        sys.exit(main(["launch", *sys.argv[1:]]))
