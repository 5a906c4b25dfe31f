"""What a run was made with: the commit of the code and the versions of the packages that its numbers depend on."""

import importlib.metadata
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
