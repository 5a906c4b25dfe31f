"""What made a run: the commit, the versions of the packages that its numbers depend on, and the user."""

import getpass
import importlib.metadata
import os
import socket
from pathlib import Path

from mlflow.utils.git_utils import get_git_commit
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT

PACKAGES = ("medpix-finetune", "torch", "transformers", "peft", "datasets", "prefect", "mlflow")


def provenance() -> dict[str, str]:
    """Returns tags of an MLflow run: `version.torch` and the like, and the commit where there is one.

    The commit is that of the project's checkout, or of the working directory where the project is installed elsewhere.
    """
    commit = get_git_commit(str(Path(__file__).parent)) or get_git_commit(str(Path.cwd()))
    versions = {f"version.{package}": importlib.metadata.version(package) for package in PACKAGES}
    return versions | ({MLFLOW_GIT_COMMIT: commit} if commit else {})


def responsible_user() -> str:
    """Returns who acts: `user@host`, and before it what Prefect knows of who started the flow run at hand."""
    from prefect.context import FlowRunContext  # half a second, which the registry's --help need not wait for

    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    account = f"{user}@{socket.gethostname()}"
    context = FlowRunContext.get()
    creator = context.flow_run.created_by if context and context.flow_run else None
    if creator is None or not creator.display_value:
        return account
    return f"{creator.display_value} ({(creator.type or 'prefect').lower()}), {account}"
