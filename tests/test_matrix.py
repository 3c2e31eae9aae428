"""models/nf4/matrix.py: the six tensors of a matrix, beside bitsandbytes' own and beside the definition of NF4."""

import bitsandbytes.functional as bnb
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.nf4 import layout, matrix

CPU = torch.device("cpu")
SHAPES = [(1, 64), (2, 64), (3, 192), (64, 64), (128, 576), (192, 576), (255, 64), (256, 64), (257, 64), (96, 1536)]
DTYPES = [torch.float32, torch.bfloat16]


def weights(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows * 10_007 + columns)
    return (torch.randn(rows, columns, generator=generator) * 0.02).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_the_tensors_are_those_of_bitsandbytes(rows: int, columns: int, dtype: torch.dtype) -> None:
    weight = weights(rows, columns, dtype)
    packed = matrix.quantise(weight, CPU)
    theirs, state = bnb.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    assert torch.equal(packed.packed.reshape(-1), theirs.reshape(-1))
    assert torch.equal(packed.absmax, state.absmax)
    assert torch.equal(packed.absmax2, state.state2.absmax)
    assert packed.offset.item() == float(state.offset)
    assert torch.equal(packed.code, state.code)
    assert torch.equal(packed.code2, state.state2.code)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_dequantising_gives_what_bitsandbytes_gives(rows: int, columns: int, dtype: torch.dtype) -> None:
    weight = weights(rows, columns, dtype)
    theirs = bnb.dequantize_4bit(*bnb.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4"))
    ours = matrix.dequantise(matrix.quantise(weight, CPU), dtype)
    assert ours.dtype == dtype
    assert torch.equal(ours, theirs)


def test_the_layout_is_what_the_docstring_says() -> None:
    """Decoded by hand: high nibble first, blocks of 64 along a row, absmax itself in blocks of 256."""
    rows, columns = 37, 512  # 296 blocks: one whole block of absmax values and a part of a second
    packed = matrix.quantise(weights(rows, columns), CPU)
    nf4, dynamic = bnb.get_4bit_type("nf4", device="cpu"), bnb.create_dynamic_map()
    codes = torch.stack([packed.packed >> 4, packed.packed & 15], dim=-1).reshape(rows, columns)
    scale2 = packed.absmax2.repeat_interleave(256)[: packed.absmax.numel()]
    absmax = dynamic[packed.absmax.long()] * scale2 + packed.offset
    by_hand = nf4[codes.long()] * absmax.repeat_interleave(64).reshape(rows, columns)
    torch.testing.assert_close(by_hand, matrix.dequantise(packed, torch.float32), rtol=1e-6, atol=1e-9)


def test_shapes_and_dtypes_are_the_documented_ones() -> None:
    packed = matrix.quantise(weights(130, 576), CPU)
    assert [(t.dtype, tuple(t.shape)) for t in packed] == [
        (torch.uint8, (130, 288)),
        (torch.uint8, (130 * 9,)),
        (torch.float32, (5,)),
        (torch.float32, ()),
        (torch.float32, (16,)),
        (torch.float32, (256,)),
    ]


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 700), blocks=st.integers(1, 12))
def test_nbytes_is_the_size_of_the_real_tensors(rows: int, blocks: int) -> None:
    packed = matrix.quantise(torch.ones(rows, blocks * 64), CPU)
    assert layout.nbytes(rows, blocks * 64) == sum(tensor.nbytes for tensor in packed)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 40), blocks=st.integers(1, 6), scale=st.sampled_from([1e-4, 0.02, 1.0, 50.0]))
def test_every_weight_lands_near_its_value(rows: int, blocks: int, scale: float) -> None:
    """The widest gap of the 16 values is 0.304 of a block's absmax, so half of it, and 8 bits of error in absmax."""
    weight = weights(rows, blocks * 64) * (scale / 0.02)
    error = (matrix.dequantise(matrix.quantise(weight, CPU), torch.float32) - weight).abs()
    absmax = weight.reshape(-1, 64).abs().amax(dim=1)
    assert (error.reshape(-1, 64).amax(dim=1) <= 0.152 * absmax + 0.02 * absmax.max()).all()


def test_zeros_stay_zeros() -> None:
    assert matrix.dequantise(matrix.quantise(torch.zeros(8, 128), CPU), torch.float32).count_nonzero() == 0


def test_a_transposed_matrix_is_read_in_its_own_order() -> None:
    weight = weights(64, 128)
    ours = matrix.dequantise(matrix.quantise(weight.T, CPU), torch.float32)
    assert torch.equal(ours, matrix.dequantise(matrix.quantise(weight.T.contiguous(), CPU), torch.float32))


@pytest.mark.parametrize("columns", [1, 32, 63, 65, 96])
def test_columns_that_are_not_a_multiple_of_64_are_refused(columns: int) -> None:
    with pytest.raises(ValueError, match=f"{columns} columns are not a multiple of 64"):
        matrix.quantise(torch.ones(64, columns), CPU)


def test_in_pieces_it_is_the_same_as_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some rows at a time bound the working memory; blocks never cross a row."""
    weight = weights(100, 192)
    whole = matrix.quantise(weight, CPU)
    for chunk in (1, 192, 7 * 192 + 5, 99 * 192):
        monkeypatch.setattr(matrix, "CHUNK", chunk)
        assert all(torch.equal(a, b) for a, b in zip(matrix.quantise(weight, CPU), whole, strict=True))


@pytest.mark.parametrize("lead", [(1,), (7,), (2, 5), (), (0,), (3, 0)])
def test_multiplying_is_a_product_with_the_dequantised_matrix(lead: tuple[int, ...]) -> None:
    packed = matrix.quantise(weights(192, 576), CPU)
    x = torch.randn(*lead, 576, generator=torch.Generator().manual_seed(1))
    y = matrix.multiply(x, packed)
    assert y.shape == (*lead, 192)
    torch.testing.assert_close(y, x @ matrix.dequantise(packed, torch.float32).T, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_card_quantises_to_the_same_bytes(dtype: torch.dtype) -> None:
    """Their threshold code differs, so values on a boundary may; the share that does is what this test bounds."""
    weight = weights(2048, 4096, dtype)
    here, there = matrix.quantise(weight, CPU), matrix.quantise(weight, torch.device("cuda"))
    assert torch.equal(here.code, there.code.cpu())
    assert torch.equal(here.code2, there.code2.cpu())
    for part in ("packed", "absmax"):
        ours, theirs = getattr(here, part), getattr(there, part).cpu()
        assert (ours != theirs).float().mean() < 1e-4, part


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_a_dense_product_is_that_of_torch(rows: int) -> None:
    """oneDNN's and MKL's sums differ in their last bits only."""
    torch.manual_seed(rows)
    x, weight = torch.randn(2, rows, 192), torch.randn(320, 192)
    expected = (x.double() @ weight.double().T).float()
    torch.testing.assert_close(matrix.dense(x, weight), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(matrix.dense(x.double(), weight.double()).float(), expected, rtol=1e-5, atol=1e-4)
