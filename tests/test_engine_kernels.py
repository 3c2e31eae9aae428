"""models/engine/kernels.py in Triton's interpreter, beside transformers' modules and plain torch.

Memory that a kernel should have written is NaN until it has.
"""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.mixtral.modeling_mixtral import MixtralRMSNorm, MixtralTopKRouter, apply_rotary_pos_emb

from models.engine import kernels
from models.engine.cache import BLOCK

EPS = 1e-5
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """What `new_empty` returns is full of NaN."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    assert torch.empty(4).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def whole(halves: torch.Tensor) -> torch.Tensor:
    """[2, T, N/2] → [T, N]."""
    return halves.permute(1, 2, 0).flatten(1)


def count(live: int) -> torch.Tensor:
    return torch.tensor([live], dtype=torch.int32)


def assert_rounded(found: torch.Tensor, expected: torch.Tensor) -> None:
    """The same to a last bit here and there: sums in another order end on the other side of a rounding."""
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=2 * torch.finfo(found.dtype).eps, atol=1e-7)
    if found.dtype != torch.float32:
        assert (found == expected).double().mean() > 0.99


def norm(width: int, dtype: torch.dtype) -> MixtralRMSNorm:
    module = MixtralRMSNorm(width, EPS).to(dtype)
    module.weight.data.normal_(1, 0.2)
    return module.requires_grad_(False)


def stream(rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    return (2 * torch.randn(rows, width)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("splits", "rows", "width"), [(1, 5, 576), (2, 1, 64), (4, 3, 2048)])
def test_settle(dtype: torch.dtype, splits: int, rows: int, width: int) -> None:
    module, residual = norm(width, dtype), stream(rows, width, dtype)
    partials = torch.randn(splits, rows, width)
    expected = (residual.float() + sum(partials)).to(dtype)
    kept = residual.clone()
    normed = kernels.settle(partials, kept, module.weight, EPS)
    assert normed.shape == (2, rows, width // 2)
    assert torch.equal(kept, expected)
    assert_rounded(whole(normed), module(expected))
    plain = kernels.settle(partials, residual, module.weight, EPS, halves=False)
    assert torch.equal(plain, whole(normed))


@pytest.mark.parametrize("dtype", DTYPES)
def test_settle_weighs_experts(dtype: torch.dtype) -> None:
    splits, rows, width, top_k = 2, 3, 576, 2
    module, residual = norm(width, dtype), stream(rows, width, dtype)
    partials, shares = torch.randn(splits, rows * top_k, width), torch.rand(rows, top_k)
    outputs = (partials[0] + partials[1]).view(rows, top_k, width) * shares[..., None]
    expected = (residual.float() + (outputs[:, 0] + outputs[:, 1])).to(dtype)
    normed = kernels.settle(partials, residual, module.weight, EPS, shares=shares)
    assert torch.equal(residual, expected)
    assert_rounded(whole(normed), module(expected))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_settle_takes_products_in_the_models_dtype(dtype: torch.dtype) -> None:
    module, residual, product = norm(576, dtype), stream(3, 576, dtype), stream(3, 576, dtype)
    expected = residual + product
    kernels.settle(product[None], residual, module.weight, EPS)
    assert torch.equal(residual, expected)


def test_settle_without_a_product() -> None:
    module, residual = norm(576, torch.bfloat16), stream(3, 576, torch.bfloat16)
    before = residual.clone()
    normed = kernels.settle(None, residual, module.weight, EPS)
    assert torch.equal(residual, before)
    assert_rounded(whole(normed), module(before))


def test_settle_leaves_no_row_to_another() -> None:
    module, partials, residual = norm(576, torch.float16), torch.randn(2, 4, 576), stream(4, 576, torch.float16)
    partials[:, 2] = torch.nan
    alone = kernels.settle(partials[:, 3:].contiguous(), residual[3:].clone(), module.weight, EPS)
    normed = kernels.settle(partials, residual, module.weight, EPS)
    assert torch.equal(normed[:, 3:], alone)
    assert normed[:, 2].isnan().all() and not normed[:, [0, 1, 3]].isnan().any()


def router(experts: int, top_k: int, width: int, dtype: torch.dtype) -> MixtralTopKRouter:
    config = SimpleNamespace(num_experts_per_tok=top_k, num_local_experts=experts, hidden_size=width)
    module = MixtralTopKRouter(config).to(dtype)
    module.weight.data.normal_(0, 0.1)
    return module.requires_grad_(False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("experts", "top_k", "width"), [(8, 2, 576), (6, 3, 64), (2, 1, 256)])
def test_route(dtype: torch.dtype, experts: int, top_k: int, width: int) -> None:
    module, residual, gate = norm(width, dtype), stream(7, width, dtype), router(experts, top_k, width, dtype)
    partials = torch.randn(2, 7, width)
    same = residual.clone()
    normed, chosen, shares = kernels.route(partials, residual, module.weight, EPS, gate.weight, top_k, count(5))
    settled = kernels.settle(partials, same, module.weight, EPS)
    assert torch.equal(normed, settled) and torch.equal(residual, same)
    _, odds, expected = gate(whole(normed)[:5])
    assert chosen.dtype == torch.int32 and torch.equal(chosen[:5].long(), expected)
    # A logit, a sum in another order, is rounded to the dtype: mostly to the same, else a share is off by a last bit.
    torch.testing.assert_close(shares[:5], odds, rtol=max(8 * torch.finfo(dtype).eps, 3e-6), atol=0)
    assert torch.isclose(shares[:5], odds, rtol=3e-6).double().mean() > 0.7
    assert (chosen[5:] == -1).all() and (shares[5:] == 0).all()


def test_route_takes_the_first_of_equals() -> None:
    module, residual, gate = norm(64, torch.float32), stream(1, 64, torch.float32), torch.zeros(8, 64)
    _, chosen, shares = kernels.route(None, residual, module.weight, EPS, gate, 2, count(1))
    assert chosen.tolist() == [[0, 1]] and shares.tolist() == [[0.5, 0.5]]
    gate[[3, 5]] = residual
    _, chosen, _ = kernels.route(None, residual, module.weight, EPS, gate, 3, count(1), halves=False)
    assert chosen.tolist() == [[3, 5, 0]]


@np.errstate(invalid="ignore")
def test_route_chooses_real_experts_for_a_broken_row() -> None:
    module, residual = norm(64, torch.float32), stream(2, 64, torch.float32)
    residual[0] = torch.nan
    _, chosen, shares = kernels.route(None, residual, module.weight, EPS, torch.randn(6, 64), 2, count(2))
    assert chosen[0].tolist() == [0, 1] and shares[0].isnan().all()
    torch.testing.assert_close(shares[1].sum(), torch.tensor(1.0))


def rotation(rows: int, dim: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.randint(30_000, (rows, 1)) / 1e6 ** (torch.arange(0, dim, 2) / dim)
    return angles.cos().repeat(1, 2).to(dtype), angles.sin().repeat(1, 2).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "dim", "splits"), [(9, 3, 64, 1), (8, 2, 128, 4), (2, 2, 16, 2)])
def test_rotate(dtype: torch.dtype, heads: int, kv_heads: int, dim: int, splits: int) -> None:
    rows, live = 5, 3
    partials = torch.randn(splits, rows, (heads + 2 * kv_heads) * dim)
    cos, sin = rotation(rows, dim, dtype)
    pool = torch.full((2, 40, kv_heads, dim), torch.nan, dtype=dtype)
    slots = torch.tensor([33, 4, 18, 4, 99_999_999])
    queries = kernels.rotate(partials, cos, sin, slots, pool[0], pool[1], heads, count(live))

    product = sum(partials[1:], partials[0]).to(dtype).view(rows, -1, dim)
    asked, kept, told = product.split((heads, kv_heads, kv_heads), dim=1)
    q, k = apply_rotary_pos_emb(asked.float(), kept.float(), cos.float(), sin.float())
    assert torch.equal(queries[:live], q[:live].to(dtype))
    assert torch.equal(pool[0, slots[:live]], k[:live].to(dtype)) and torch.equal(pool[1, slots[:live]], told[:live])
    others = torch.ones(40, dtype=torch.bool).index_fill(0, slots[:live], False)
    assert pool[:, others].isnan().all()
    # transformers itself rounds twice more on the way, each time by half a last bit of the larger product.
    q, k = apply_rotary_pos_emb(asked, kept, cos, sin)
    error = torch.finfo(dtype).eps * asked[:live].abs().amax(-1, keepdim=True)
    assert ((queries[:live] - q[:live]).abs() <= 2 * error).all()


class Paged:
    """Sequences of `lengths` tokens in blocks without order; every slot that is none of theirs is NaN."""

    def __init__(self, lengths: list[int], heads: int, kv_heads: int, dim: int, dtype: torch.dtype) -> None:
        self.lengths, self.heads = lengths, heads
        counts = [-(-length // BLOCK) for length in lengths]
        scattered = torch.randperm(sum(counts) + 3, dtype=torch.int32)
        self.tables = torch.full((len(lengths), max(counts) + 2), 99_999_999, dtype=torch.int32)
        self.pool = torch.full((2, len(scattered) * BLOCK, kv_heads, dim), torch.nan, dtype=dtype)
        for row, (length, blocks) in enumerate(zip(lengths, counts, strict=True)):
            self.tables[row, :blocks], scattered = scattered[:blocks], scattered[blocks:]
            self.pool[:, self.slots(row)] = torch.randn(2, length, kv_heads, dim).to(dtype)
        self.positions = torch.tensor(lengths, dtype=torch.int32) - 1
        self.queries = torch.randn(len(lengths), heads, dim).to(dtype)
        self.scaling = dim**-0.5

    def slots(self, row: int) -> torch.Tensor:
        at = torch.arange(self.lengths[row])
        return self.tables[row, at // BLOCK].long() * BLOCK + at % BLOCK

    def attend(
        self, splits: int, rows: list[int] | slice = slice(None), live: int = 99, **options: Any
    ) -> torch.Tensor:
        keys, values = self.pool
        return kernels.attend(
            self.queries[rows], keys, values, self.tables[rows], self.positions[rows], self.scaling, splits,
            count(live), **options,
        )  # fmt: skip

    def expected(self) -> torch.Tensor:
        """[T, heads*dim] fp32."""
        outputs = []
        for row, query in enumerate(self.queries):
            keys, values = self.pool[:, self.slots(row)].transpose(1, 2).float()
            made = scaled_dot_product_attention(
                query[:, None].float(), keys, values, scale=self.scaling, enable_gqa=True
            )
            outputs.append(made.flatten())
        return torch.stack(outputs)


# In fp16 a weight of the softmax and the result are rounded; in fp32 only the order of sums differs.
TOLERANCES = {torch.float32: 2e-6, torch.float16: 2e-3}


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("splits", [1, 4, 16])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (8, 2, 128), (2, 2, 16)])
def test_attend(heads: int, kv_heads: int, dim: int, splits: int, dtype: torch.dtype) -> None:
    paged = Paged([1, 700, 64, 65, 16], heads, kv_heads, dim, dtype)
    output = paged.attend(splits)
    assert output.shape == (2, 5, heads * dim // 2) and output.dtype == dtype
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(whole(output).float(), paged.expected(), rtol=tolerance, atol=tolerance)
    assert torch.equal(paged.attend(splits, halves=False), whole(output))


def test_attend_to_scores_that_are_far_apart() -> None:
    paged = Paged([300, 130], 4, 1, 32, torch.float32)
    paged.queries *= 200
    torch.testing.assert_close(whole(paged.attend(4)), paged.expected(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("splits", [1, 3, 16])
def test_a_row_does_not_depend_on_its_batch(splits: int) -> None:
    paged = Paged([333, 1, 128, 1200, 40], 6, 2, 32, torch.float16)
    together = whole(paged.attend(splits))
    for row in range(5):
        assert torch.equal(whole(paged.attend(splits, [row])), together[row : row + 1])
    order = [3, 0, 3, 4]
    assert torch.equal(whole(paged.attend(splits, order)), together[order])
    paged.tables = torch.cat((paged.tables, paged.tables), dim=1)
    assert torch.equal(whole(paged.attend(splits)), together)


def test_padding_reads_nothing() -> None:
    paged = Paged([70, 20, 5], 4, 1, 16, torch.float32)
    alone = paged.attend(2, [0])
    paged.tables[1:], paged.positions[1:], paged.queries[1:] = 99_999_999, 2**30, torch.nan
    output = paged.attend(2, live=1)
    assert torch.equal(output[:, :1], alone) and (output[:, 1:] == 0).all()
    assert (paged.attend(2, live=0) == 0).all()
