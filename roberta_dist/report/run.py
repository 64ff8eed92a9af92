"""`report`: a run folder's metrics as a picture."""

from __future__ import annotations

from pathlib import Path

from roberta_dist.config.roots import ReportConfig
from roberta_dist.report.picture import draw, headline
from roberta_dist.report.read import read_run
from roberta_dist.runtime.files import atomic_write


def report(config: ReportConfig) -> int:
    """Draw `config.run_dir` and print where the picture lies.

    Raises:
        ConfigError: not a run folder, or nothing has been logged yet.
        DataFault: metrics.jsonl is damaged.
        StorageError: the picture cannot be written.
    """
    run_dir = Path(config.run_dir).expanduser()
    run = read_run(run_dir)
    output = Path(config.output).expanduser() if config.output else run_dir / "metrics.png"
    atomic_write(output, draw(run))
    print(f"{run.name}: {headline(run)}")
    print(f"picture: {output}")
    return 0
