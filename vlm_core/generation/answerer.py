"""A trained model with all that it takes to answer: processor, family, device."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_core.config import ModelConfig
from vlm_core.families import Family, family_of
from vlm_core.generation.decode import Answer, generate_batch
from vlm_core.models.fetch import fetch_model
from vlm_core.models.load import device_of, is_adapter, load_processor, load_trained, weights_directory


@dataclass(frozen=True)
class Answerer:
    """Answers conversations that end with a user turn."""

    model: Any
    processor: Any
    family: Family

    @classmethod
    def load(cls, checkpoint: Path | None, config: ModelConfig, local_rank: int = 0) -> "Answerer":
        """Returns the model of `checkpoint` on the rank's device; without one, the base model that `config` names.

        Full weights are loaded alone; an adapter goes over the base model.
        """
        weights = weights_directory(checkpoint) if checkpoint else fetch_model(config)
        base = fetch_model(config) if is_adapter(weights) else weights
        model = load_trained(weights, base, config).to(device_of(local_rank)).eval()
        return cls(model, load_processor(base), family_of(base))

    def answer(self, conversations: Sequence[list[dict[str, Any]]], max_new_tokens: int) -> list[Answer]:
        """Returns the answers, generated as one batch."""
        return generate_batch(self.model, self.processor, self.family, conversations, max_new_tokens)
