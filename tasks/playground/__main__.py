"""Opens a page on loopback where people ask a registered model and its base model about an image.

python -m tasks.playground medpix-gemma3
python -m tasks.playground medpix-gemma3 4 --port 8090

The page asks for the same password as Prefect's. The answers come side by side; the registered model's have the
confidence that was calibrated on the validation split. Nothing that is shown or asked is stored.
"""

from tasks.playground.arguments import playground_parser

if __name__ == "__main__":  # before the imports below, which take seconds
    OPTIONS = playground_parser(__doc__).parse_args()
else:
    OPTIONS = None

import argparse

import uvicorn
from mlflow.exceptions import MlflowException

from tasks.playground.models import load_models
from tasks.playground.page import create_app
from tasks.services.databases import require_databases
from tasks.services.password import USER, home_password, password_file
from vlm_core.plain_text import printable


def main(options: argparse.Namespace) -> None:
    """Loads the models and serves the page until Ctrl-C."""
    try:
        require_databases()
        app = create_app(load_models(options.name, options.version), home_password(), options.port)
    except (ValueError, OSError, MlflowException) as error:
        raise SystemExit(f"error: {printable(error)}") from error
    print(f"open http://127.0.0.1:{options.port} and log in as {USER}; the password is after the colon in "
          f"{password_file()}\nCtrl-C ends the page", flush=True)  # fmt: skip
    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="warning")


if OPTIONS:
    main(OPTIONS)
