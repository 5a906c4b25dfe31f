"""A job in which rank 1 comes late: first to where one rank may work for the others, then to a step of the training.

`torchrun -m tests.distributed.late`
"""

import time
from datetime import timedelta

from vlm_core.training import distributed

distributed.STEP_WAIT = timedelta(seconds=2)

if __name__ == "__main__":
    with distributed.command() as ranks:
        for meet in (distributed.barrier, lambda: distributed.sum_over_ranks(1.0)):
            if ranks.rank == 1:
                time.sleep(4)
            meet()
            print(f"rank {ranks.rank} met the others", flush=True)
