"""Runs torchrun, and ends without a traceback after SIGTERM: a stopped run has not failed."""

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.run import main

if __name__ == "__main__":
    try:
        main()
    except SignalException as stop:
        raise SystemExit(128 + stop.sigval) from None
