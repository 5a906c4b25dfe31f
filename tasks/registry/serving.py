"""The registered model: MLflow runs this file to load one (models from code), here or behind `mlflow models serve`.

Input: a data frame with the columns `image` (an image, DICOM or NIfTI file in base64) and `question`; the parameter
`max_new_tokens`. Output: a list of answers. Callers are not trusted: a request has limits of size and time, and an
error says what is wrong with the request but shows nothing of the server.
"""

import logging
import sys
import threading
import time
from pathlib import Path
from typing import Any

import mlflow
import pandas
from mlflow.environment_variables import MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE
from PIL import Image

MAX_ROWS = 64  # of one request
MAX_NEW_TOKENS = 1024
MAX_CHARACTERS = 20_000  # of a question
MAX_PIXELS = 50_000_000  # of all images of a request: 150 MB once they are decoded
logger = logging.getLogger(__name__)


class ImageQuestionModel(mlflow.pyfunc.PythonModel):
    """Answers questions about images with the checkpoint among its artifacts."""

    def load_context(self, context: Any) -> None:
        """Loads the full weights, or the adapter over its base model."""
        # Imported here: a tracking server and the flow read this file without needing torch.
        from vlm_core.cache import require_unchanged
        from vlm_core.config import ModelConfig
        from vlm_core.data.medical.settings import settings_of
        from vlm_core.generation.answerer import Answerer
        from vlm_core.models.model_reference import find_model
        from vlm_core.run_directory import require_registered

        base = ModelConfig(**context.model_config["model"])
        weights = context.model_config.get("weights")
        if weights:  # not among the artifacts: the registry is of the machine that they lie on
            require_registered(Path(weights["path"]))
            require_unchanged(Path(weights["path"]), weights["sha256"])
        checkpoint = weights["path"] if weights else context.artifacts["checkpoint"]
        files = find_model(checkpoint, base)
        self.answerer, self.images = Answerer.load(files), settings_of(files.weights)
        self.turn = Turn(self.answerer.model)
        if "mlflow.pyfunc.scoring_server" in sys.modules:
            hide_stack_traces()

    def predict(self, context: Any, model_input: pandas.DataFrame, params: dict[str, Any] | None = None) -> Any:
        """Returns one answer for each row, as a list of strings.

        Raises MlflowException that says which limit a request exceeds, or what is wrong with a row.
        """
        from vlm_core.generation.sampling import GenerationSettings

        try:
            settings = GenerationSettings(_allowed_length((params or {})["max_new_tokens"]))
            conversations = _conversations(model_input, self.images)
            size = context.model_config["batch_size"]
            batches = [conversations[start : start + size] for start in range(0, len(conversations), size)]
            with self.turn:
                return [answer.text for batch in batches for answer in self.answerer.answer(batch, settings)]
        except (ValueError, TimeoutError) as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from None
        except Exception:
            logger.exception("a request failed")
            raise MlflowException("the model failed; the server's log says why", error_code=INTERNAL_ERROR) from None


class Turn:
    """A block for the request that computes; it ends with TimeoutError when MLflow's server has given the request up.

    MLflow answers 504 after `MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT` seconds (60 by default), also if the client is
    gone, but the thread that computes would go on. Only one request computes at a time, so that memory stays bounded.
    """

    def __init__(self, model: Any) -> None:
        self._lock, self._end = threading.Lock(), float("inf")
        # Every path of generation embeds each token that it has chosen before it computes the next one.
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
    """Keeps the stack traces that MLflow's scoring server sends to callers in its log."""
    serialize = MlflowException.serialize_as_json

    def without_stack_trace(self: MlflowException) -> str:
        if trace := self.json_kwargs.pop("stack_trace", None):
            logger.error("%s", trace)
        return serialize(self)

    MlflowException.serialize_as_json = without_stack_trace


def _allowed_length(max_new_tokens: int) -> int:
    if not 1 <= max_new_tokens <= MAX_NEW_TOKENS:
        raise ValueError(f"max_new_tokens={max_new_tokens}: it has to be between 1 and {MAX_NEW_TOKENS}")
    return max_new_tokens


def _conversations(rows: pandas.DataFrame, settings: Any) -> list[Any]:
    """Returns the rows as conversations; raises ValueError that names the row and what is wrong with it."""
    if not 1 <= len(rows) <= MAX_ROWS:
        raise ValueError(f"{len(rows)} rows: a request has between 1 and {MAX_ROWS}")
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
        raise ValueError("the question has characters that no text can have") from None
    return question_turn(question, images)


set_model(ImageQuestionModel())
