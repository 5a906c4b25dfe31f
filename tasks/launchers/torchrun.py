"""torchrun that ends without a traceback when it is told to end: a run that was stopped is not one that failed."""

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.run import main

if __name__ == "__main__":
    try:
        main()
    except SignalException as stop:
        raise SystemExit(128 + stop.sigval) from None
