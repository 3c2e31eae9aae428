"""scripts/gpu_check.py: its figures on a small model on the CPU, and that a fault in the path is seen."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import MixtralConfig

from models import catalog, machine, plan
from models.failure import Failure
from models.nf4 import experts
from models.nf4.matrix import Packed, multiply
from scripts import gpu_check
from tests.conftest import ROOT

CPU = torch.device("cpu")
CONFIG = MixtralConfig(
    architectures=["MixtralForCausalLM"],
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
    assert found["taken_bytes"] == {"requested": found["planned_bytes"]}
    assert found["agreement"] == {"tokens": 12, "same": 12, "worst_behind": 0.0, "holds": True}
    assert [run["batch"] for run in found["runs"]] == [1, 3]
    for run in found["runs"]:
        assert run["prefill"] > 0
        assert run["decode_fraction"] == pytest.approx(run["decode"] / run["decode_limit"])
    json.dumps(found)


def test_a_step_that_fails_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(experts, "multiply", fail)
    with pytest.raises(Failure, match="model_error"):
        gpu_check.check(CONFIG, CPU, (1,), 20, 12)


def test_a_wrong_path_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts, "multiply", lambda x, weight: -wrong(x, weight))
    found = gpu_check.check(CONFIG, CPU, (1,), 20, 12)
    assert not found["agreement"]["holds"]
    assert not found["holds"]


def wrong(x: torch.Tensor, weight: Packed) -> torch.Tensor:
    """As if an expert's rows had been read in another order."""
    return multiply(x, weight).flip(-1)


@pytest.mark.parametrize(
    ("batch", "gigabytes"), [(1, 7.0), (2, 11.5), (4, 17.7), (8, 23.5), (16, 27.3), (32, 30.8), (64, 37.3)]
)
def test_the_bytes_of_a_step_are_those_of_the_published_limit(batch: int, gigabytes: float) -> None:
    """For a context of 1,560 tokens, with experts, attention, lm_head and KV cache."""
    config = MixtralConfig(**catalog.MIXTRAL.config)
    step = gpu_check.step_bytes(plan.of_row(catalog.MIXTRAL), config, batch, 1560)
    assert step / 1e9 == pytest.approx(gigabytes, rel=1e-2)


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
