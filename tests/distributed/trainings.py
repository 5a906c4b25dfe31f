"""Runs several trainings one after the other in one torchrun job, since its imports take longer than a training.

`torchrun -m tests.distributed.trainings CONVERSATIONS CONFIG ...`
"""

import sys
from pathlib import Path

from vlm_core.finetune import finetune
from vlm_core.recipe import load_config
from vlm_core.training.distributed import command, same_as_main

if __name__ == "__main__":
    with command() as ranks:
        assert same_as_main(ranks.rank) == 0
        for config in sys.argv[2:]:
            finetune(load_config(config, {}), ranks, Path(sys.argv[1]))
