"""Runs one model on several ranks: replicated on each (DDP), or with its weights sharded over them (FSDP2).

FSDP2 gathers the full weights of a decoder layer only while that layer computes. The rest of the model (embeddings,
head, projector, vision tower) is one unit, gathered from the forward pass to the end of the backward pass. The blocks
of the tower cannot be units: a rank whose batch has no image would not gather them, and the others would wait forever.
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
    """Makes torch compile each decoder layer on its first call; layers of the same kind share the compiled code.

    The rest of the model is not compiled, because inserting image features at the image tokens breaks the graph.
    """
    logger.info("compute.compile: the compiled layers compute all positions, those without a target too, and all pairs "
                "of tokens on a CPU")  # fmt: skip
    for layer in decoder_layers(model):
        layer.compile()


def parallelize(loss: TokenLoss, strategy: str, ranks: Ranks, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Returns the module to call instead of `loss`, on `device`. It averages the gradients over the ranks."""
    if ranks.world_size == 1:
        if strategy != "ddp":
            logger.warning("compute.strategy=%s has no effect on one process: raise compute.nproc_per_node", strategy)
        return loss.to(device)
    if strategy == "fsdp2":
        _shard(loss, ranks, device, dtype)
        return loss
    return DistributedDataParallel(
        loss.to(device),
        gradient_as_bucket_view=True,
        find_unused_parameters=not loss.chat.returns_hidden_states,  # a generic model's forward may skip some
    )


def _shard(loss: TokenLoss, ranks: Ranks, device: torch.device, dtype: torch.dtype) -> None:
    """Shards the weights in place, layer by layer, so that the device never holds the full model.

    The ranks exchange weights in `dtype`, the dtype of the computation, and gradients in float32.
    """
    mesh = init_device_mesh(device.type, (ranks.world_size,))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in decoder_layers(loss.model):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(loss, mesh=mesh, mp_policy=policy)
    sharded: Any = list(loss.parameters())  # DTensors
    held, total = (sum(numbers) for numbers in zip(*((p.to_local().numel(), p.numel()) for p in sharded), strict=True))
    logger.info("fsdp2: each process holds %s of %s parameters", f"{held:,}", f"{total:,}")


def decoder_layers(model: Any) -> nn.ModuleList:
    """Returns the layers of a model's text decoder."""
    return unwrapped(model).get_decoder().layers


def without_sync(module: nn.Module) -> AbstractContextManager[None]:
    """Returns a context that accumulates gradients locally, without reducing them over the ranks.

    Has no effect under FSDP2, which always reduces: full local gradients would use the memory that sharding saves.
    """
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


@contextmanager
def outside_forward(loss: nn.Module) -> Iterator[None]:
    """Gathers the sharded weights for the block, so that code may call modules of the model outside `loss.forward`.

    All ranks must enter the block.
    """
    if isinstance(loss, FSDPModule):
        loss.unshard()
    yield
    if isinstance(loss, FSDPModule):
        loss.reshard()


def full_state(state: Any, *, keep: bool) -> Any:
    """Gathers every sharded tensor of a state dictionary; returns it with full tensors on the CPU.

    Ranks that do not `keep` the result get None for each sharded tensor. All ranks must call this.
    """

    def gather(tensor: DTensor) -> torch.Tensor | None:
        gathered = tensor.full_tensor()
        return gathered.cpu() if keep else None

    return pytree.tree_map_only(DTensor, gather, state)


def load_full_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads into an optimizer the state that `full_state` returned, sharded like its parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, values in state["state"].items():
        like = parameters[index]
        if isinstance(like, DTensor):
            for name, value in values.items():
                if value.shape == like.shape:  # other values are scalars, equal on all ranks
                    on_device = value.to(like.device)
                    values[name] = distribute_tensor(on_device, like.device_mesh, like.placements, src_data_rank=None)
    optimizer.load_state_dict(state)
