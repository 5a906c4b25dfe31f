"""Shared by all tests: a temporary home, with tiny models and data that are created once."""

import atexit
import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings
from PIL import Image

# Set before any import of Prefect, MLflow or torch, which read the environment at import. Child processes inherit it.
if "MEDPIX_TESTS" not in os.environ:
    os.environ["MEDPIX_TESTS"] = "running"
    os.environ["MEDPIX_HOME"] = tempfile.mkdtemp(prefix="medpix-test-")
    atexit.register(shutil.rmtree, os.environ["MEDPIX_HOME"], ignore_errors=True)
HOME = Path(os.environ["MEDPIX_HOME"])
for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PREFECT_HOME", "HF_TOKEN"):
    os.environ.pop(name, None)
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may depend on the network
os.environ["MEDPIX_CLUSTER_ALLOWS"] = "*"  # tests/tasks/test_allowed.py removes it
os.environ["OMP_NUM_THREADS"] = "1"  # threads of a tiny model wait for each other more than they compute

from tasks.services.environment import set_service_defaults

set_service_defaults()
del os.environ["PREFECT_LOGGING_EXTRA_LOGGERS"]  # otherwise Prefect takes the log records that tests check

from vlm_core.cache import cached_directory
from vlm_core.config import Config
from vlm_core.data.prepare import prepare_conversations
from vlm_core.families import FAMILIES, Family
from vlm_core.home import medpix_home
from vlm_core.models.base_model import fetch_model
from vlm_core.recipe import load_config

# The same examples in every run. Hypothesis explains a failure by tracing Python; after a training in the same process
# that never ends (CPython 3.11, torch 2.14).
settings.register_profile(
    "suite", derandomize=True, deadline=None, phases=[Phase.explicit, Phase.generate, Phase.shrink]
)
settings.load_profile("suite")

SMALL = {
    "dataset.path_or_dataset": "builtin:phantom?images=40",
    "dataloader": {"num_workers": 0},  # a process that has run a flow cannot fork
    "lr_scheduler": {"lr_warmup_steps": 50},
    "step_scheduler": {
        "global_batch_size": 8,
        "local_batch_size": 8,
        "max_steps": 3,
        "val_every_steps": None,
        "val_questions": 0,
    },
}


def small_config(**overrides: Any) -> Config:
    """Returns the demo's config on 40 images for 3 steps, with dotted `overrides` on top."""
    return load_config("demo", SMALL | overrides)


def fresh_home(home: Path) -> Path:
    """Creates a home with the tests' data and models, but without features and answers."""
    (home / "cache").mkdir(parents=True)
    for name in ("phantom", "models", "conversations"):
        (medpix_home() / "cache" / name).mkdir(parents=True, exist_ok=True)
        (home / "cache" / name).symlink_to(medpix_home() / "cache" / name)
    return home


def new_mlflow_store(directory: Path) -> str:
    """Creates an empty MLflow store in `directory` and returns its URI: a copy, because creating one takes seconds."""

    def create(template: Path) -> dict[str, Any]:
        import mlflow  # lazy: most tests do not need it

        mlflow.MlflowClient(f"sqlite:///{template}/mlflow.db").search_experiments()
        return {}

    template, _ = cached_directory(HOME / "templates", "mlflow", create)
    shutil.copy(template / "mlflow.db", directory / "mlflow.db")
    return f"sqlite:///{directory}/mlflow.db"


def noise(size: tuple[int, int]) -> Image.Image:
    """Returns an RGB noise image of `size` (width, height) that never changes, unlike Pillow's noise."""
    return Image.frombytes("RGB", size, random.Random(0).randbytes(3 * size[0] * size[1]))


@pytest.fixture(scope="session")
def conversations() -> Path:
    """The conversation cache of 40 phantom images: 340 training and 60 validation rows."""
    return prepare_conversations(small_config())[0]


@pytest.fixture(scope="session")
def small_conversations() -> Path:
    """The conversation cache of 12 phantom images: 100 training and 20 validation rows."""
    return prepare_conversations(small_config(**{"dataset.path_or_dataset": "builtin:phantom?images=12"}))[0]


USUAL = ("gemma3", "gemma3n", "qwen2_5_vl")


@pytest.fixture(scope="session", params=USUAL)
def family(request: pytest.FixtureRequest) -> Family:
    """Three model families in turn, which differ in all that most tests depend on."""
    return FAMILIES[request.param]


# Minutes each: at the end, one of them would leave the other cores idle.
LONGEST = ("test_demo.py", "test_stores.py", "test_benchmarks.py", "test_tutorials.py")


@pytest.hookimpl(tryfirst=True)  # before `-m 'not slow'` selects
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)
    for item in items:
        if item.get_closest_marker("one_family") and item.callspec.params["family"] != USUAL[0]:
            item.add_marker("slow")


# For the tests of what a row promises: masks, positions, features and answers. tests/models/test_gemma4.py has others.
every_family = pytest.mark.parametrize("family", [*USUAL, "qwen3_vl", "qwen3_vl_moe"], indirect=True, scope="session")


def tiny_directory(family: str) -> Path:
    """Returns the directory of the tiny model of `family`."""
    return fetch_model(small_config(**{"model.pretrained_model_name_or_path": f"builtin:tiny-{family}"}).model)


@pytest.fixture(scope="session")
def tiny_gemma3() -> Path:
    """The directory of the tiny Gemma 3."""
    return tiny_directory("gemma3")


@pytest.fixture(scope="session")
def processor(family: Family) -> Any:
    """The processor of the tiny model of `family`."""
    from vlm_core.models.load import load_processor

    return load_processor(tiny_directory(family.model_type))


@pytest.fixture(scope="session")
def chat(family: Family, processor: Any) -> Any:
    """The chat model of the tiny model of `family`."""
    from vlm_core.models.chat import FastChat

    return FastChat(processor, family)
