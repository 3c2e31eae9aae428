"""models/nf4/layout.py: sizes by arithmetic alone, beside the tensors that quantising really gives."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.nf4 import layout
from models.nf4.matrix import quantise
from tests.conftest import ROOT

CPU = torch.device("cpu")


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 700), blocks=st.integers(1, 12))
def test_specs_are_those_of_the_real_tensors(rows: int, blocks: int) -> None:
    packed = quantise(torch.ones(rows, blocks * 64), CPU)
    specs = layout.specs(rows, blocks * 64)
    assert list(specs) == list(packed._fields)
    for name, tensor in packed._asdict().items():
        assert (f"torch.{specs[name].dtype}", specs[name].shape) == (str(tensor.dtype), tuple(tensor.shape))
        assert specs[name].nbytes == tensor.nbytes
    assert layout.nbytes(rows, blocks * 64) == sum(tensor.nbytes for tensor in packed)


def test_a_stack_is_its_matrices_and_nothing_else() -> None:
    for stack in ((1,), (8,), (3, 5)):
        specs = layout.specs(96, 128, *stack)
        assert {name: spec.shape for name, spec in specs.items()} == {
            name: (*stack, *spec.shape) for name, spec in layout.specs(96, 128).items()
        }
        assert layout.nbytes(96, 128, *stack) == torch.Size(stack).numel() * layout.nbytes(96, 128)


def test_mixtral_matrices_by_hand() -> None:
    """Nibbles, one byte a block of 64, four a block of 256 of those, one offset, 16 + 256 codes."""
    blocks = 14_336 * 4096 // 64
    assert blocks == 917_504
    by_hand = 14_336 * 4096 // 2 + blocks + 4 * (blocks // 256) + 4 + 4 * (16 + 256)
    assert layout.nbytes(14_336, 4096) == layout.nbytes(4096, 14_336) == by_hand == 30_293_060
    assert layout.nbytes(14_336, 4096) * 8 / (14_336 * 4096) == pytest.approx(4.127, abs=5e-4)


@pytest.mark.parametrize("columns", [1, 32, 63, 65, 96])
def test_columns_that_are_not_a_multiple_of_64_are_refused(columns: int) -> None:
    with pytest.raises(ValueError, match=f"{columns} columns are not a multiple of 64"):
        layout.specs(64, columns)


def test_it_needs_no_torch() -> None:
    code = "import sys; from models.nf4 import layout; print(layout.nbytes(64, 64), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(64 * 64 // 2 + 64 + 4 + 4 + 1088), "False"]
