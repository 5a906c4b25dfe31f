"""Starts and stops the servers and the worker on this machine, and says where they are.

python -m tasks.services up
python -m tasks.services env       prints their addresses for a shell
python -m tasks.services status
python -m tasks.services down
"""

import argparse

from vlm_core.program import as_called

if __name__ == "__main__":  # before the imports below, which take seconds
    parser = argparse.ArgumentParser(
        prog=as_called("python -m tasks.services"),
        description=as_called(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=("up", "down", "status", "env"))
    COMMAND = parser.parse_args().command
else:
    COMMAND = None

import os

from prefect.settings import PREFECT_API_URL

from tasks.services.up import Services
from vlm_core.plain_text import printable


def main(command: str) -> None:
    """Runs the command."""
    api = PREFECT_API_URL.value()  # of the environment, or of the user's profile
    services = Services(dict(os.environ) | ({"PREFECT_API_URL": api} if api else {}))
    commands = {"up": services.up, "down": services.down, "status": services.status, "env": services.exports}
    try:
        print(as_called(commands[command]() or "stopped"))
    except RuntimeError as error:
        raise SystemExit(f"error: {printable(error)}") from error


if COMMAND:
    main(COMMAND)
