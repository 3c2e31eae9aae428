"""models/nf4/linear.py: a layer that computes from four bits what the dequantised matrix would."""

import pytest
import torch
from torch import nn

from models.nf4 import layout, matrix
from models.nf4.linear import NF4Linear

CPU = torch.device("cpu")


def pair(rows: int, columns: int) -> tuple[NF4Linear, matrix.Packed]:
    """A layer filled as models/network.py fills it, and the matrix it was filled with."""
    generator = torch.Generator().manual_seed(rows + columns)
    packed = matrix.quantise(torch.randn(rows, columns, generator=generator) * 0.05, CPU)
    with torch.device("meta"):
        linear = NF4Linear(rows, columns)
    for name, tensor in packed._asdict().items():
        setattr(linear, name, nn.Parameter(tensor, requires_grad=False))
    return linear, packed


@pytest.mark.parametrize("lead", [(1,), (7,), (1, 1), (2, 5), (1, 33), ()])
@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (192, 576), (576, 192), (40, 1536)])
def test_forward_is_a_product_with_the_dequantised_matrix(rows: int, columns: int, lead: tuple[int, ...]) -> None:
    linear, packed = pair(rows, columns)
    x = torch.randn(*lead, columns, generator=torch.Generator().manual_seed(1))
    y = linear(x)
    assert y.shape == (*lead, rows)
    torch.testing.assert_close(y, x @ matrix.dequantise(packed, torch.float32).T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bias_is_added(dtype: torch.dtype) -> None:
    linear, packed = pair(128, 192)
    biased = NF4Linear(128, 192, torch.bfloat16)
    assert biased.bias is not None and not biased.bias.requires_grad
    for name, tensor in [*packed._asdict().items(), ("bias", torch.linspace(-3, 3, 128).bfloat16())]:
        setattr(biased, name, nn.Parameter(tensor, requires_grad=False))
    x = torch.randn(5, 192, generator=torch.Generator().manual_seed(1)).to(dtype)
    y = biased(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, linear(x) + biased.bias.to(dtype))
    biased.products = torch.bfloat16
    assert biased(x).dtype == torch.bfloat16


def test_bf16_in_is_bf16_out() -> None:
    linear, packed = pair(128, 256)
    x = torch.randn(9, 256, generator=torch.Generator().manual_seed(1)).bfloat16()
    y = linear(x)
    assert y.dtype == torch.bfloat16
    exact = x.float() @ matrix.dequantise(packed, torch.float32).T
    torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.02)


def test_the_parameters_are_the_six_tensors() -> None:
    linear, packed = pair(130, 576)
    found = dict(linear.named_parameters())
    assert list(found) == ["packed", "absmax", "absmax2", "offset", "code", "code2"]
    for name, tensor in packed._asdict().items():
        assert torch.equal(found[name], tensor)
        assert torch.equal(getattr(linear.matrix(), name), tensor)
    assert not any(parameter.requires_grad for parameter in found.values())


@pytest.mark.parametrize(("rows", "columns"), [(1, 64), (3, 64), (257, 64), (192, 576), (576, 1536)])
def test_a_new_layer_has_the_shapes_that_quantising_gives(rows: int, columns: int) -> None:
    linear = NF4Linear(rows, columns)
    packed = matrix.quantise(torch.ones(rows, columns), CPU)
    for name, tensor in packed._asdict().items():
        parameter = linear.get_parameter(name)
        assert (parameter.shape, parameter.dtype) == (tensor.shape, tensor.dtype)
    assert sum(parameter.nbytes for parameter in linear.parameters()) == layout.nbytes(rows, columns)


def test_on_meta_a_layer_holds_nothing() -> None:
    with torch.device("meta"):
        linear = NF4Linear(1 << 20, 1 << 20)
    assert all(parameter.is_meta for parameter in linear.parameters())


def test_no_gradient_is_kept() -> None:
    linear, _ = pair(64, 64)
    assert not linear(torch.ones(2, 64)).requires_grad


def test_products_of_another_dtype_are_near_and_of_that_dtype() -> None:
    torch.manual_seed(0)
    layer = NF4Linear(128, 192)
    packed = matrix.quantise(torch.randn(128, 192), torch.device("cpu"))
    for name, tensor in packed._asdict().items():
        setattr(layer, name, torch.nn.Parameter(tensor, requires_grad=False))
    x = torch.randn(5, 192)
    exact = layer(x)
    layer.products = torch.bfloat16
    rounded = layer(x)
    assert (exact.dtype, rounded.dtype) == (torch.float32, torch.bfloat16)
    assert 0 < (rounded.float() - exact).norm() / exact.norm() < 0.01
