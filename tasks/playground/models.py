"""The models of the playground: a registered version as it is served, and the base model that it was trained from."""

import warnings
from threading import Lock
from typing import Any

import mlflow
import pandas

from tasks.playground.page import Model
from tasks.registry.resolve import find_version, local_copy
from tasks.registry.trust import verify
from vlm_core.config import ModelConfig
from vlm_core.generation.answerer import Answerer
from vlm_core.generation.sampling import GenerationSettings
from vlm_core.models.model_reference import find_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow warns about the type hints of its own class
    from tasks.registry.serving import confidence_of, conversations_of

MAX_NEW_TOKENS = 256


def load_models(name: str, version: str) -> list[Model]:
    """Returns the registered version, which is verified first, and its base model.

    Raises ValueError if the version is not as it was registered, MlflowException if it does not exist.
    """
    found = find_version(f"models:/{name}/{version}" if version.isdigit() else f"models:/{name}@{version}")
    directory = local_copy(found)
    verify(name, str(found.version), directory)
    loaded = mlflow.pyfunc.load_model(str(directory))
    python_model: Any = loaded.unwrap_python_model()
    settings: Any = loaded.model_config
    base = Answerer.load(find_model(None, ModelConfig(**settings["model"])))
    title, fitted = f"{name}, version {found.version}", settings.get("confidence", {})
    return [
        _model(title, python_model.answerer, python_model.images, fitted),
        _model("the base model, before training", base, python_model.images, {}),
    ]


def _model(title: str, answerer: Answerer, images: Any, fitted: dict[str, Any]) -> Model:
    """Returns a model that decodes images with the settings `images`, and calibrates its confidence by `fitted`."""
    turn = Lock()

    def ask(image: str, question: str) -> dict[str, Any]:
        conversations = conversations_of(pandas.DataFrame({"image": [image], "question": [question]}), images)
        with turn:
            (answer,) = answerer.answer(conversations, GenerationSettings(MAX_NEW_TOKENS))
        return {"model": title, "answer": answer.text, "confidence": confidence_of(question, answer, fitted)}

    return ask
