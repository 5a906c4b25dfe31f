"""The registered model: MLflow runs this file to load one (models from code), here or behind `mlflow models serve`.

Input: a data frame with the columns `image` (an encoded image file in base64) and `question`; the parameter
`max_new_tokens`. Output: a list of answers.
"""

from pathlib import Path
from typing import Any

import mlflow
import pandas
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE


class ImageQuestionModel(mlflow.pyfunc.PythonModel):
    """Answers questions about images with the checkpoint among its artifacts."""

    def load_context(self, context: Any) -> None:
        """Loads the full weights, or the adapter over its base model."""
        # Imported here: a tracking server and the flow read this file without needing torch.
        from vlm_core.cache import require_unchanged
        from vlm_core.config import ModelConfig
        from vlm_core.generation.answerer import Answerer
        from vlm_core.models.model_reference import find_model

        base = ModelConfig(**context.model_config["model"])
        weights = context.model_config.get("weights")
        if weights:  # not among the artifacts: the registry is of the machine that they lie on
            require_unchanged(Path(weights["path"]), weights["sha256"])
        checkpoint = weights["path"] if weights else context.artifacts["checkpoint"]
        self.answerer = Answerer.load(find_model(checkpoint, base))

    def predict(self, context: Any, model_input: pandas.DataFrame, params: dict[str, Any] | None = None) -> Any:
        """Returns one answer a row, as a list of strings; raises MlflowException that names a row it cannot read."""
        from vlm_core.generation.sampling import GenerationSettings

        rows = zip(model_input["image"], model_input["question"], strict=True)
        conversations = [_conversation(number, image, question) for number, (image, question) in enumerate(rows)]
        size = context.model_config["batch_size"]
        settings = GenerationSettings((params or {})["max_new_tokens"])
        batches = [conversations[start : start + size] for start in range(0, len(conversations), size)]
        return [answer.text for batch in batches for answer in self.answerer.answer(batch, settings)]


def _conversation(number: int, image: Any, question: str) -> list[Any]:
    from vlm_core.data.conversation import question_turn
    from vlm_core.data.image_cells import encoded_image_of_caller
    from vlm_core.data.images import decode_image

    try:
        shown = decode_image(encoded_image_of_caller(image))
    except ValueError as error:
        raise MlflowException(f"row {number}: {error}", INVALID_PARAMETER_VALUE) from None
    return [question_turn(question, [shown])]


set_model(ImageQuestionModel())
