"""LoRA matrices that start from the training data (EVA): the main directions of what reaches each adapted module.

peft finds them in the first training batches. A module whose inputs need more directions gets a higher rank, others a
lower one, or no matrices at all. So a run that resumes takes the ranks from its checkpoint.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import torch
from peft import get_eva_state_dict, initialize_lora_eva_weights
from peft.tuners.lora import LoraLayer

from vlm_core.data.chat_model import Batch, ChatModel
from vlm_core.data.collate import shows_images
from vlm_core.models.forward import on_device
from vlm_core.models.load import unwrapped
from vlm_core.training.distributed import Ranks, decided_by_main
from vlm_core.training.loss import TokenLoss

logger = logging.getLogger(__name__)

BATCHES = 8  # which peft keeps in memory and repeats until the directions hardly change
MOST_PASSES = 200  # forward passes before the run gives up
ADAPTER = "default"


def start_from_data(model: Any, chat: ChatModel, first: "FirstBatches", ranks: Ranks, device: torch.device) -> None:
    """Sets ranks, scales and A matrices of the PeftModel `model` by the `first` training batches; B stays zero.

    The main rank computes them on `device`, and all ranks get its result. Raises ValueError if that cannot be done.
    """
    found = decided_by_main(ranks, lambda: _directions(model, chat, first, device))
    with torch.random.fork_rng(devices=[]):  # new matrices draw numbers, before they are overwritten
        initialize_lora_eva_weights(model, eva_state_dict=found)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()  # peft gives changed ranks the dtype of the base
    # What is saved loads without data.
    model.peft_config[ADAPTER].init_lora_weights, model.peft_config[ADAPTER].eva_config = True, None


def _directions(model: Any, chat: ChatModel, first: "FirstBatches", device: torch.device) -> dict[str, torch.Tensor]:
    """Returns the A matrix of each adapted module (rank, in) on the CPU."""
    loss = _Passes(TokenLoss(model, chat))
    model.to(device).eval()
    _require_directions(model, loss, next(iter(first)))
    logger.info("LoRA's matrices start from the inputs of each module in %d forward passes (EVA)", len(first))
    with torch.random.fork_rng(devices=[]):
        found = get_eva_state_dict(
            model,
            first,
            forward_fn=loss,
            prepare_model_inputs_fn=lambda batch, _: _is_token(batch),
            prepare_layer_inputs_fn=_inputs_of_tokens,
            adapter_name=ADAPTER,
            gather_distributed_inputs=False,
            show_progress_bar=False,
        )
    return {name: matrix.cpu() for name, matrix in found.items()}


class FirstBatches:
    """The batches of the first steps of an `epoch`; those with images come first."""

    def __init__(self, batches: Any, epoch: Sequence[Sequence[int]]) -> None:
        first = list(islice(chain.from_iterable(batches.micro_batches(step, 0, 1) for step in epoch), BATCHES))
        self.batches = batches
        self.order = sorted(first, key=lambda micro_batch: not shows_images(batches.batch(micro_batch)))

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        yield from map(self.batches.batch, self.order)


class _Passes:
    """Computes the loss of one batch after the other. Raises ValueError after too many."""

    def __init__(self, loss: TokenLoss) -> None:
        self.loss, self.count = loss, 0

    def __call__(self, model: Any, batch: Batch) -> torch.Tensor:
        self.count += 1
        if self.count > MOST_PASSES:
            raise ValueError(
                f"peft.init_lora_weights=eva: after {MOST_PASSES} forward passes the directions still change; lower "
                "peft.dim, raise packing.max_tokens, or set peft.init_lora_weights=true"
            )
        return self.loss(on_device(batch, unwrapped(model)))


def _is_token(batch: Batch) -> torch.Tensor:
    """Returns which positions (B, T) of a batch hold a token and no padding."""
    if "group_ids" in batch:
        return batch["group_ids"] > 0
    return batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()


def _inputs_of_tokens(inputs: Sequence[torch.Tensor], is_token: torch.Tensor, name: str) -> torch.Tensor:
    """Returns the inputs of a module (N, in), without padding if it gets one per token of the text."""
    given = inputs[0]
    return given[is_token] if given.shape[:-1] == is_token.shape else given.reshape(-1, given.shape[-1])


def _require_directions(model: Any, loss: _Passes, batch: Batch) -> None:
    """Raises ValueError if an adapted module has too few inputs for its rank, or none in `batch`."""
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    otherwise = "or set peft.init_lora_weights=true"
    for name, module in adapted.items():
        if 2 * module.r[ADAPTER] > module.in_features:  # peft divides the ranks up to twice each
            raise ValueError(
                f"peft.init_lora_weights=eva looks for {2 * module.r[ADAPTER]} directions, twice the rank, and "
                f"{_own_name(name)} has {module.in_features} inputs: lower peft.dim or peft.rank_pattern, {otherwise}"
            )
    unused = adapted.keys() - _reached(model, adapted, loss, batch)
    if unused:
        raise ValueError(
            f"peft.init_lora_weights=eva: the first training batch does not use {len(unused)} of the adapted "
            f"modules, such as {_own_name(min(unused))}; add them to peft.exclude_modules, {otherwise}"
        )


def _reached(model: Any, modules: Mapping[str, Any], loss: _Passes, batch: Batch) -> set[str]:
    """Returns the names of those `modules` that compute in the forward pass of `batch`."""
    reached = set[str]()
    hooks = [
        module.register_forward_pre_hook(lambda _module, _inputs, name=name: reached.add(name))
        for name, module in modules.items()
    ]
    with torch.no_grad():
        loss(model, batch)
    for hook in hooks:
        hook.remove()
    return reached


def _own_name(name: str) -> str:
    """Returns the name of a module in the model without peft."""
    return name.removeprefix("base_model.model.")
