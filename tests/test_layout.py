"""models/nf4/layout.py: the four tensors of a matrix, beside bitsandbytes' own and beside the definition of NF4."""

import bitsandbytes.functional as bnb
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import catalog
from models.nf4 import layout

SHAPES = [(1, 64), (2, 64), (3, 192), (64, 64), (128, 576), (192, 576), (255, 64), (256, 64), (257, 64), (96, 1536)]
DTYPES = [torch.float32, torch.bfloat16]


def weights(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows * 10_007 + columns)
    return (torch.randn(rows, columns, generator=generator) * 0.02).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_the_tensors_are_those_of_bitsandbytes(rows: int, columns: int, dtype: torch.dtype) -> None:
    weight = weights(rows, columns, dtype)
    packed = layout.quantise(weight)
    theirs, state = bnb.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    assert torch.equal(packed.packed.reshape(-1), theirs.reshape(-1))
    assert torch.equal(packed.absmax, state.absmax)
    assert torch.equal(packed.absmax2, state.state2.absmax)
    assert packed.offset.item() == float(state.offset)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_dequantising_gives_what_bitsandbytes_gives(rows: int, columns: int, dtype: torch.dtype) -> None:
    weight = weights(rows, columns, dtype)
    theirs = bnb.dequantize_4bit(*bnb.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4"))
    ours = layout.dequantise(layout.quantise(weight), dtype)
    assert ours.dtype == dtype
    assert torch.equal(ours, theirs)


def test_the_layout_is_what_the_docstring_says() -> None:
    """Decoded by hand: high nibble first, blocks of 64 along a row, absmax itself in blocks of 256."""
    rows, columns = 37, 512  # 296 blocks: one whole block of absmax values and a part of a second
    packed = layout.quantise(weights(rows, columns))
    nf4, dynamic = bnb.get_4bit_type("nf4", device="cpu"), bnb.create_dynamic_map()
    codes = torch.stack([packed.packed >> 4, packed.packed & 15], dim=-1).reshape(rows, columns)
    scale2 = packed.absmax2.repeat_interleave(256)[: packed.absmax.numel()]
    absmax = dynamic[packed.absmax.long()] * scale2 + packed.offset
    by_hand = nf4[codes.long()] * absmax.repeat_interleave(64).reshape(rows, columns)
    torch.testing.assert_close(by_hand, layout.dequantise(packed, torch.float32), rtol=1e-6, atol=1e-9)


def test_shapes_and_dtypes_are_the_documented_ones() -> None:
    packed = layout.quantise(weights(130, 576))
    assert [(t.dtype, tuple(t.shape)) for t in packed] == [
        (torch.uint8, (130, 288)),
        (torch.uint8, (130 * 9,)),
        (torch.float32, (5,)),
        (torch.float32, ()),
    ]


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 700), blocks=st.integers(1, 12))
def test_nbytes_is_the_size_of_the_real_tensors(rows: int, blocks: int) -> None:
    packed = layout.quantise(torch.ones(rows, blocks * 64))
    assert layout.nbytes(rows, blocks * 64) == sum(tensor.nbytes for tensor in packed)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 40), blocks=st.integers(1, 6), scale=st.sampled_from([1e-4, 0.02, 1.0, 50.0]))
def test_every_weight_lands_near_its_value(rows: int, blocks: int, scale: float) -> None:
    """The widest gap of the 16 values is 0.304 of a block's absmax, so half of it, and 8 bits of error in absmax."""
    weight = weights(rows, blocks * 64) * (scale / 0.02)
    error = (layout.dequantise(layout.quantise(weight), torch.float32) - weight).abs()
    absmax = weight.reshape(-1, 64).abs().amax(dim=1)
    assert (error.reshape(-1, 64).amax(dim=1) <= 0.152 * absmax + 0.02 * absmax.max()).all()


def test_zeros_stay_zeros() -> None:
    assert layout.dequantise(layout.quantise(torch.zeros(8, 128)), torch.float32).count_nonzero() == 0


def test_a_transposed_matrix_is_read_in_its_own_order() -> None:
    weight = weights(64, 128)
    ours = layout.dequantise(layout.quantise(weight.T), torch.float32)
    assert torch.equal(ours, layout.dequantise(layout.quantise(weight.T.contiguous()), torch.float32))


@pytest.mark.parametrize("columns", [1, 32, 63, 65, 96])
def test_columns_that_are_not_a_multiple_of_64_are_refused(columns: int) -> None:
    with pytest.raises(ValueError, match=f"{columns} columns are not a multiple of 64"):
        layout.quantise(torch.ones(64, columns))


def mixtral_bytes(expert: int) -> int:
    """All of Mixtral-8x7B where one expert takes `expert` bytes: 32 layers of 4,096, 8 experts, 32,000 tokens."""
    attention = 2 * layout.nbytes(4096, 4096) + 2 * layout.nbytes(1024, 4096)
    bf16 = 2 * (2 * 32_000 * 4096 + 4096 + 32 * (2 * 4096 + 8 * 4096))  # embeddings, lm_head; norms; routers
    return 32 * (attention + 8 * expert) + bf16


def test_mixtral_with_one_matrix_a_projection() -> None:
    each = 2 * layout.nbytes(14_336, 4096) + layout.nbytes(4096, 14_336)
    assert mixtral_bytes(each) == 24_483_540_480


def test_mixtral_with_gate_and_up_in_one_matrix() -> None:
    fused = layout.nbytes(28_672, 4096) + layout.nbytes(4096, 14_336)
    assert mixtral_bytes(fused) == 24_483_539_456


def test_the_catalogue_counts_mixtral_with_its_code_tables() -> None:
    """The row's figure adds 16 + 256 fp32 codes to each of the 32 x 28 matrices, which bitsandbytes keeps for each."""
    each = 2 * layout.nbytes(14_336, 4096) + layout.nbytes(4096, 14_336)
    weights_in_row = catalog.MIXTRAL.card_bytes - (2 << 30) - 8192 * 131_072
    assert weights_in_row == mixtral_bytes(each) + 32 * 28 * 4 * (16 + 256)
