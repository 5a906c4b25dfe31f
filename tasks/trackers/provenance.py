"""Records where a run comes from: the commit, the versions of the packages that affect its numbers, and the user."""

import getpass
import importlib.metadata
import os
import socket
from pathlib import Path

from mlflow.utils.git_utils import get_git_commit
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT

PACKAGES = ("medpix-finetune", "torch", "transformers", "peft", "datasets", "prefect", "mlflow")


def provenance() -> dict[str, str]:
    """Returns tags for an MLflow run: package versions such as `version.torch`, and the git commit if there is one.

    The commit is that of the project's checkout, or of the working directory if the project is an installed package.
    """
    commit = get_git_commit(str(Path(__file__).parent)) or get_git_commit(str(Path.cwd()))
    versions = {f"version.{package}": importlib.metadata.version(package) for package in PACKAGES}
    return versions | ({MLFLOW_GIT_COMMIT: commit} if commit else {})


def responsible_user() -> str:
    """Returns the person who acts: `user@host`, preceded by Prefect's creator of the current flow run if known."""
    from prefect.context import FlowRunContext  # lazy: takes half a second, too long for the registry's --help

    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # in a container, the user may have no name
        user = str(os.getuid())
    account = f"{user}@{socket.gethostname()}"
    context = FlowRunContext.get()
    creator = context.flow_run.created_by if context and context.flow_run else None
    if creator is None or not creator.display_value:
        return account
    return f"{creator.display_value} ({(creator.type or 'prefect').lower()}), {account}"
