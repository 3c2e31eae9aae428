"""scripts/gpu_check.py: its figures on a small model on the CPU, and that a fault in the path is seen."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import MixtralConfig

from models import catalog, machine, plan
from models.nf4 import experts
from models.nf4.matrix import Packed, multiply
from scripts import gpu_check
from tests.conftest import ROOT

CPU = torch.device("cpu")
CONFIG = MixtralConfig(
    vocab_size=1000,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def test_a_small_model_holds() -> None:
    found = gpu_check.check(CONFIG, CPU, (1, 3), 40, 12)
    assert found["holds"]
    assert found["allocated_bytes"] == found["planned_bytes"]
    assert found["agreement"] == {"tokens": 12, "same": 12, "worst_behind": 0.0, "holds": True}
    assert [run["batch"] for run in found["runs"]] == [1, 3]
    for run in found["runs"]:
        assert run["prefill"] > 0
        assert run["fraction_of_limit_at_1"] == pytest.approx(run["decode"] / found["limit_tokens_per_second_at_1"])
    json.dumps(found)


def test_a_wrong_path_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts, "multiply", lambda x, weight: -wrong(x, weight))
    found = gpu_check.check(CONFIG, CPU, (1,), 20, 12)
    assert not found["agreement"]["holds"]
    assert not found["holds"]


def wrong(x: torch.Tensor, weight: Packed) -> torch.Tensor:
    """As if an expert's rows had been read in another order."""
    return multiply(x, weight).flip(-1)


def test_active_bytes_of_mixtral_are_those_of_the_published_limit() -> None:
    """6.77 GB a token at batch 1: two experts of eight, attention, lm_head."""
    config = MixtralConfig(**catalog.MIXTRAL.config)
    active = gpu_check.active_bytes(plan.of_row(catalog.MIXTRAL), config)
    assert active == pytest.approx(6.77e9, rel=2e-3)


@pytest.mark.skipif(machine.card() is not None, reason="there is a GPU here")
def test_without_a_card_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scripts.gpu_check", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (
        0,
        "scripts/gpu_check: there is no NVIDIA card here; nothing was checked\n",
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
def test_one_full_width_layer_on_the_card() -> None:
    config = MixtralConfig(**{**catalog.MIXTRAL.config, "num_hidden_layers": 1})
    assert gpu_check.check(config, torch.device("cuda"), (1,), 200, 16)["holds"]
