"""SCALING.md has the tables that its script prints, and they describe the published model."""

import subprocess
import sys

import pytest

from deployments.scaling import GEMMA3_4B, Inputs, costs_of, report, seconds_to_send
from tests.e2e.services import ROOT
from vlm_core.training.flops import PEAK_FLOPS


def test_the_page_has_the_tables_of_the_script() -> None:
    page = (ROOT / "deployments" / "SCALING.md").read_text(encoding="utf-8")
    for title, table in report(Inputs(), [8, 64, 512]):
        assert f"## {title}\n\n{table}\n" in page


def test_the_costs_are_those_of_the_published_model() -> None:
    costs = costs_of("gemma3_4b_lora", Inputs())
    # The model card: 3.9 billion parameters in the language model with embeddings, 417 million in the vision tower.
    assert sum(sum(costs.parts[part]) for part in ("language_model", "embeddings")) == pytest.approx(3.88e9, rel=0.01)
    assert sum(costs.parts["vision_tower"]) == pytest.approx(417e6, rel=0.01)
    # The benchmarks' README: the tower costs 2.7 forward passes over an example of 319 tokens.
    assert costs.tower / (2 * sum(costs.parts["language_model"]) * 319) == pytest.approx(2.7, abs=0.05)
    assert costs.features == GEMMA3_4B["mm_tokens_per_image"] * 1152 * 2 == 589_824
    # SCALING.md: reading at this speed takes as long as encoding.
    assert costs.features / (costs.tower / Inputs().flops) == pytest.approx(37e6, rel=0.01)


def test_a_ring_of_one_sends_nothing_and_a_ring_over_nodes_uses_their_network() -> None:
    inputs = Inputs(inside_node=100, between_nodes=10, gpus_a_node=8)
    assert [seconds_to_send(gpus, 1000, inputs) for gpus in (1, 8, 16)] == [0, 8.75, 93.75]


@pytest.mark.slow
def test_the_command_accepts_other_inputs() -> None:
    words = ["--images", "100", "--gpu", "A100", "--gpus", "1"]
    command = [sys.executable, "-m", "deployments.scaling", *words]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tables = report(Inputs(images=100, gpu="A100"), [1])
    assert output == "\n\n".join(f"## {title}\n\n{table}" for title, table in tables) + "\n"
    assert Inputs(gpu="A100").flops == 0.35 * PEAK_FLOPS["A100"]
    assert "| questions per step | 20 |" in output
