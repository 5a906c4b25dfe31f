"""The FLOPs of a token, and the share of a GPU's peak that a step reaches; None on an unknown device."""

from pathlib import Path

import pytest
import torch

from tests.conftest import small_config
from vlm_core.files import read_json, read_json_lines
from vlm_core.finetune import finetune
from vlm_core.models.freeze import Counts
from vlm_core.run_directory import METRICS, PARAMETERS
from vlm_core.training.distributed import Ranks
from vlm_core.training.flops import flops_per_token, model_flops_utilisation, peak_flops, peak_of


def matmul_flops(layer: torch.nn.Module, features: int, needs: bool) -> int:
    """The reference: torch's count for the forward and backward pass of one token."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        layer(torch.ones(1, features, requires_grad=needs)).sum().backward()
    return counter.get_total_flops()


def test_a_token_costs_what_torch_counts() -> None:
    full = torch.nn.Sequential(torch.nn.Linear(8, 16, bias=False), torch.nn.Linear(16, 8, bias=False))
    assert flops_per_token({"language_model": Counts(256, 0), "embeddings": Counts(999, 0)}) == matmul_flops(
        full, 8, needs=True
    )
    full[0].requires_grad_(False)
    assert flops_per_token({"language_model": Counts(128, 128), "vision_tower": Counts(0, 999)}) == matmul_flops(
        full, 8, needs=True
    )
    full.requires_grad_(False)
    # LoRA: all weights are frozen, and a few new ones are trained.
    assert flops_per_token({"language_model": Counts(0, 256)}) == matmul_flops(full, 8, needs=True)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Tesla T4", None),
    ],
)
def test_a_gpu_is_known_by_its_name(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak


def test_the_share_refers_to_all_devices() -> None:
    assert model_flops_utilisation(4e12, 0.5, 16e12, 2) == {"model_flops_utilisation": 0.25}
    assert model_flops_utilisation(4e12, 0.5, None, 2) == {}
    assert peak_of(torch.device("cpu")) is None


@pytest.mark.slow
def test_only_a_run_on_a_known_device_reports_the_share(
    conversations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for directory, peak in ((tmp_path / "cpu", None), (tmp_path / "gpu", 1e6)):
        monkeypatch.setattr("vlm_core.training.loop.peak_of", lambda device, peak=peak: peak)
        config = small_config(**{"checkpoint.checkpoint_dir": str(directory), "peft.dim": 4})
        finetune(config, Ranks(), conversations)
    assert not any("model_flops_utilisation" in record for record in read_json_lines(tmp_path / "cpu" / METRICS)[0])
    parts = {part: Counts(**counts) for part, counts in read_json(tmp_path / "gpu" / PARAMETERS).items()}
    for record in read_json_lines(tmp_path / "gpu" / METRICS)[0]:
        flops = flops_per_token(parts) * record["computed_tokens"]
        assert record["model_flops_utilisation"] == pytest.approx(flops / record["step_seconds"] / 1e6, rel=1e-2)
        assert record["seconds_left"] >= 0
        assert record["elapsed_seconds"] > 0
