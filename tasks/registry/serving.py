"""The code of a registered model. MLflow runs this file to load one (models from code), e.g. for `mlflow models serve`.

Input: a data frame with the columns `image` (an image, DICOM or NIfTI file in base64) and `question`; the parameter
`max_new_tokens`. Output: a data frame with the columns `answer` and `confidence`: the share of right answers among
those as sure as this one, calibrated on the validation split. It is None for open questions, and for all answers if the
version's evaluation could not calibrate: the reason is in the version's settings and in the log. Callers are not
trusted: requests are limited in size and time, and errors describe the request but reveal nothing about the server.
"""

import logging
import math
import sys
import threading
import time
from pathlib import Path
from typing import Any

import mlflow
import numpy
import pandas
from mlflow.environment_variables import MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE
from PIL import Image

MAX_ROWS = 64  # per request
MAX_NEW_TOKENS = 1024
MAX_CHARACTERS = 20_000  # per question
MAX_PIXELS = 50_000_000  # of all images of a request; decoded: 150 MB
logger = logging.getLogger(__name__)


class ImageQuestionModel(mlflow.pyfunc.PythonModel):
    """Answers questions about images with the checkpoint among its artifacts."""

    def load_context(self, context: Any) -> None:
        """Loads the full weights, or the adapter over its base model."""
        # Lazy: a tracking server and the flow import this file without needing torch.
        from vlm_core.cache import require_unchanged
        from vlm_core.config import ModelConfig
        from vlm_core.data.medical.settings import settings_of
        from vlm_core.generation.answerer import Answerer
        from vlm_core.models.model_reference import find_model
        from vlm_core.run_directory import require_registered

        base = ModelConfig(**context.model_config["model"])
        weights = context.model_config.get("weights")
        if weights:  # not an artifact: they are on the same machine as the registry
            require_registered(Path(weights["path"]))
            require_unchanged(Path(weights["path"]), weights["sha256"])
        checkpoint = weights["path"] if weights else context.artifacts["checkpoint"]
        files = find_model(checkpoint, base)
        self.answerer, self.images = Answerer.load(files), settings_of(files.weights)
        self.turn = Turn(self.answerer.model)
        if reason := context.model_config.get("confidence", {}).get("reason"):
            logger.warning("answers have no confidence: %s", reason)
        if "mlflow.pyfunc.scoring_server" in sys.modules:
            hide_stack_traces()

    def predict(self, context: Any, model_input: pandas.DataFrame, params: dict[str, Any] | None = None) -> Any:
        """Returns a data frame with the columns `answer` and `confidence`, one row per question.

        Raises MlflowException if the request exceeds a limit or a row is invalid.
        """
        from vlm_core.generation.sampling import GenerationSettings

        try:
            settings = GenerationSettings(_allowed_length((params or {})["max_new_tokens"]))
            conversations = conversations_of(model_input, self.images)
            size = context.model_config["batch_size"]
            batches = [conversations[start : start + size] for start in range(0, len(conversations), size)]
            with self.turn:
                answers = [answer for batch in batches for answer in self.answerer.answer(batch, settings)]
            confidence = [
                confidence_of(question, answer, context.model_config.get("confidence", {}))
                for question, answer in zip(model_input["question"], answers, strict=True)
            ]
            columns = {"answer": [answer.text for answer in answers], "confidence": confidence}
            return pandas.DataFrame(columns, dtype=object)  # not numbers: JSON has no NaN
        except (ValueError, TimeoutError) as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from None
        except Exception:
            logger.exception("a request failed")
            raise MlflowException("the model failed; the server's log says why", error_code=INTERNAL_ERROR) from None


class Turn:
    """Context manager: lets one request compute at a time, and stops it when MLflow's server has given up on it.

    MLflow answers 504 after `MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT` seconds (60 by default), but the computing thread
    would continue. So TimeoutError is raised in it. One request at a time keeps memory bounded.
    """

    def __init__(self, model: Any) -> None:
        self._lock, self._end = threading.Lock(), float("inf")
        # Generation embeds each chosen token before it computes the next one, so this hook runs at every step.
        model.get_input_embeddings().register_forward_pre_hook(self._check)

    def __enter__(self) -> None:
        seconds = MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT.get()
        if not self._lock.acquire(timeout=seconds):
            raise TimeoutError(f"other requests took all of the {seconds} s that a request has; ask again later")
        self._end = time.monotonic() + seconds

    def __exit__(self, *error: object) -> None:
        self._end = float("inf")
        self._lock.release()

    def _check(self, module: Any, inputs: Any) -> None:
        if time.monotonic() > self._end:
            raise TimeoutError("the request took too long; ask for fewer rows or a lower max_new_tokens")


def hide_stack_traces() -> None:
    """Makes MLflow's scoring server log stack traces instead of sending them to callers."""
    serialize = MlflowException.serialize_as_json

    def without_stack_trace(self: MlflowException) -> str:
        if trace := self.json_kwargs.pop("stack_trace", None):
            logger.error("%s", trace)
        return serialize(self)

    MlflowException.serialize_as_json = without_stack_trace


def confidence_of(question: str, answer: Any, fitted: dict[str, Any]) -> float | None:
    """Returns the calibrated confidence of an answer; None if the question is open, or nothing was calibrated."""
    from vlm_core.evaluation.served_confidence import calibrated, is_closed

    if "slope" not in fitted or answer.truncated or not is_closed(question, answer.text, fitted["closed"]):
        return None
    return round(float(calibrated(numpy.array([math.exp(answer.logprob)]), fitted)[0]), 4)


def _allowed_length(max_new_tokens: int) -> int:
    if not 1 <= max_new_tokens <= MAX_NEW_TOKENS:
        raise ValueError(f"max_new_tokens={max_new_tokens}: it must be between 1 and {MAX_NEW_TOKENS}")
    return max_new_tokens


def conversations_of(rows: pandas.DataFrame, settings: Any) -> list[Any]:
    """Returns the rows as conversations; raises ValueError with the row number for an invalid row."""
    if not 1 <= len(rows) <= MAX_ROWS:
        raise ValueError(f"{len(rows)} rows: a request must have between 1 and {MAX_ROWS}")
    conversations, pixels = [], 0
    for number, (image, question) in enumerate(zip(rows["image"], rows["question"], strict=True)):
        try:
            shown = _decoded(image, MAX_PIXELS - pixels, settings)
            pixels += sum(one.width * one.height for one in shown)
            conversations.append([_turn(question, shown)])
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from None
    return conversations


def _decoded(image: Any, most_pixels: int, settings: Any) -> list[Image.Image]:
    """Returns the images in a file that a caller sent: one, or the slices of a DICOM or NIfTI file."""
    from vlm_core.data.cell_images import pictures_of_file
    from vlm_core.data.image_cells import encoded_image_of_caller
    from vlm_core.data.images import decode_image, pixel_count

    pictures = pictures_of_file(encoded_image_of_caller(image), settings)
    if sum(map(pixel_count, pictures)) > most_pixels:  # before anything is decoded
        raise ValueError(f"the images have more than {MAX_PIXELS:,} pixels together")
    return [decode_image(picture) for picture in pictures]


def _turn(question: Any, images: list[Image.Image]) -> Any:
    from vlm_core.data.conversation import question_turn

    if not isinstance(question, str) or not 1 <= len(question) <= MAX_CHARACTERS:
        raise ValueError(f"a question is a text of 1 to {MAX_CHARACTERS:,} characters")
    try:
        question.encode()
    except UnicodeEncodeError:
        raise ValueError("the question has characters that UTF-8 cannot encode") from None
    return question_turn(question, images)


set_model(ImageQuestionModel())
