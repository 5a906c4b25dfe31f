"""The registered model: MLflow runs this file to load one (models from code), here or behind `mlflow models serve`.

Input: a data frame with the columns `image` (an encoded image file in base64) and `question`; the parameter
`max_new_tokens`. Output: a list of answers.
"""

import base64
from pathlib import Path
from typing import Any

import mlflow
import pandas
from mlflow.models import set_model


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
        """Returns one answer a row, as a list of strings."""
        from vlm_core.data.conversation import question_turn
        from vlm_core.data.images import decode_image
        from vlm_core.generation.sampling import GenerationSettings

        conversations = [
            [question_turn(question, [decode_image(base64.b64decode(image))])]
            for image, question in zip(model_input["image"], model_input["question"], strict=True)
        ]
        size = context.model_config["batch_size"]
        settings = GenerationSettings((params or {})["max_new_tokens"])
        batches = [conversations[start : start + size] for start in range(0, len(conversations), size)]
        return [answer.text for batch in batches for answer in self.answerer.answer(batch, settings)]


set_model(ImageQuestionModel())
