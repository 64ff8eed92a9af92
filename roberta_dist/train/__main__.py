"""`python -m roberta_dist.train RUN/config.yaml`: a worker, with everything already resolved."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from roberta_dist.config.load import load_yaml
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.errors import RobertaDistError
from roberta_dist.runtime.leave import end_process
from roberta_dist.runtime.parent import exit_with_parent
from roberta_dist.runtime.signals import StopRequest
from roberta_dist.runtime.world import adopt_tasks


def main(arguments: Sequence[str]) -> int:
    """Train the run whose resolved configuration is the one argument."""
    if len(arguments) != 1:
        print("usage: python -m roberta_dist.train RUN/config.yaml", file=sys.stderr)
        return 2
    exit_with_parent()
    # Before torch is imported, for seconds in which a scheduler may ask the run to stop.
    stop = StopRequest()
    stop.install()
    try:
        adopt_tasks(os.environ)
        # Not before: it imports torch, for seconds in which the launcher may be killed, and DeepSpeed,
        # which looks at the variables of the world.
        from roberta_dist.train.run import pretrain

        return pretrain(load_yaml(PretrainConfig, Path(arguments[0])), stop)
    except RobertaDistError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    end_process(main(sys.argv[1:]))
