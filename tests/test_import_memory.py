"""An import's memory is bounded by a layer in NF4 and one float tensor, however many layers there are."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from models import plan
from tests import synthetic
from tests.conftest import ROOT


def measure(folder: Path) -> int:
    """Bytes of memory at the peak of an import, over those of the interpreter with its libraries."""
    command = [sys.executable, "-m", "tests.synthetic", str(folder), "--measure"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=600)
    return int(json.loads(done.stdout)["over"])


def layer_bytes(folder: Path) -> int:
    """One layer's experts as stored."""
    planned = plan.make("it", json.loads((folder / "config.json").read_text()), "bfloat16")
    return sum(spec.nbytes for name, spec in planned.specs.items() if name.startswith("model.layers.0."))


def test_more_layers_take_no_more_memory(tmp_path: Path) -> None:
    """Ten layers more are 450 MB of source and 116 MB as stored; an allocator's noise is some 30 MB."""
    width = synthetic.FULL | {"hidden_size": 512, "intermediate_size": 1792}
    over = {}
    for layers in (2, 12):
        synthetic.write(tmp_path / str(layers), layers, width, vocabulary=1000)
        over[layers] = measure(tmp_path / str(layers))
    assert 10 * layer_bytes(tmp_path / "12") > 110_000_000
    assert min(over.values()) > layer_bytes(tmp_path / "12")
    assert over[12] - over[2] < 70_000_000


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_full_width_stays_under_one_and_a_half_gigabytes(tmp_path: Path) -> None:
    over = {}
    for layers in (2, 4):
        folder = tmp_path / str(layers)
        synthetic.write(folder, layers, synthetic.FULL)
        over[layers] = measure(folder)
        for file in folder.glob("*.safetensors"):
            file.unlink()
    print(over)
    assert 700_000_000 < min(over.values()) < max(over.values()) <= 1_500_000_000
    assert abs(over[4] - over[2]) < 100_000_000
