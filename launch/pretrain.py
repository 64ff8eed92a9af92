"""The worker as a file, for launchers that start scripts instead of modules.

deepspeed --no_local_rank launch/pretrain.py RUN/config.yaml
srun python launch/pretrain.py RUN/config.yaml

The one argument is a resolved configuration; the world comes from RANK, WORLD_SIZE, LOCAL_RANK,
MASTER_ADDR and MASTER_PORT.
"""

import sys

from roberta_dist.train.__main__ import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
