"""One model on several ranks: whole on each of them (DDP), or its weights divided among them (FSDP2).

Under FSDP2 a decoder layer is whole only while it computes. What is outside the layers (embeddings, head, projector,
vision tower) is whole from the forward pass to the end of the backward pass: a rank whose batch has no image would
gather no block of the tower, and the others would wait for it.
"""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree as pytree

from vlm_core.models.load import unwrapped
from vlm_core.training.distributed import Ranks
from vlm_core.training.loss import TokenLoss

logger = logging.getLogger(__name__)


def compile_layers(model: Any) -> None:
    """Has torch compile each decoder layer when it is first called; layers of a kind share what was compiled.

    What lies between the layers stays as it is: an image's features go in where its tokens are, which breaks a graph.
    """
    for layer in decoder_layers(model):
        layer.compile()


def parallelize(loss: TokenLoss, strategy: str, ranks: Ranks, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Returns the loss on `device`, to be called in its place: on several ranks, its gradients are their mean."""
    if ranks.world_size == 1:
        if strategy != "ddp":
            logger.warning("compute.strategy=%s has no effect on one process: compute.nproc_per_node", strategy)
        return loss.to(device)
    if strategy == "fsdp2":
        _shard(loss, ranks, device, dtype)
        return loss
    return DistributedDataParallel(
        loss.to(device),
        gradient_as_bucket_view=True,
        find_unused_parameters=not loss.chat.splits_head,  # A model's own forward may leave some out.
    )


def _shard(loss: TokenLoss, ranks: Ranks, device: torch.device, dtype: torch.dtype) -> None:
    """Divides the weights in place, layer after layer, so that the device never holds the whole model.

    What is sent between the ranks are weights in `dtype`, that of the computation, and gradients in float32.
    """
    mesh = init_device_mesh(device.type, (ranks.world_size,))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in decoder_layers(loss.model):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(loss, mesh=mesh, mp_policy=policy)
    divided: Any = list(loss.parameters())  # DTensors
    held, total = (sum(numbers) for numbers in zip(*((p.to_local().numel(), p.numel()) for p in divided), strict=True))
    logger.info("fsdp2: a process holds %s of %s parameters", f"{held:,}", f"{total:,}")


def decoder_layers(model: Any) -> nn.ModuleList:
    """Returns the layers of a model's text decoder."""
    return unwrapped(model).get_decoder().layers


def without_sync(module: nn.Module) -> AbstractContextManager[None]:
    """Returns a block whose gradients are kept and not yet shared.

    FSDP2 shares them at once all the same: whole gradients would take the memory that it saves.
    """
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


@contextmanager
def outside_forward(loss: nn.Module) -> Iterator[None]:
    """Lets parts of the model be called in the block, on all ranks alike, and not by the loss alone."""
    if isinstance(loss, FSDPModule):
        loss.unshard()
    yield
    if isinstance(loss, FSDPModule):
        loss.reshard()


def whole(state: Any, *, keep: bool) -> Any:
    """Returns a state dictionary with every divided tensor whole, on the CPU where it is to `keep`, else dropped.

    All ranks have to call it: they send each other what they have.
    """

    def gather(tensor: DTensor) -> torch.Tensor | None:
        gathered = tensor.full_tensor()
        return gathered.cpu() if keep else None

    return pytree.tree_map_only(DTensor, gather, state)


def load_whole(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Gives an optimizer the state that `whole` returned, divided as its parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, values in state["state"].items():
        like = parameters[index]
        if isinstance(like, DTensor):
            for name, value in values.items():
                if value.shape == like.shape:  # others are one number, of all ranks
                    on_device = value.to(like.device)
                    values[name] = distribute_tensor(on_device, like.device_mesh, like.placements, src_data_rank=None)
    optimizer.load_state_dict(state)
