"""models/nf4/products.py and kernels.py in Triton's interpreter, beside plain torch on dequantised weights.

That PTX on a card finds the same values as the table here is tests/test_ptx.py's to show.
"""

from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch.nn.functional import silu

from models.nf4 import kernels, products
from models.nf4.matrix import Packed, codes, dequantise, quantise
from models.nf4.paths import Tile

CPU = torch.device("cpu")
TILE = Tile(tokens=8, rows=32, splits=2, unroll=1)
# In bf16 the 16 values are rounded; what experts hand from one product to the next is rounded in either.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 1.5e-3}
IN_EACH_DTYPE = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def matrix(rows: int, columns: int, seed: int = 0) -> Packed:
    generator = torch.Generator().manual_seed(seed)
    return quantise(torch.randn(rows, columns, generator=generator) * 0.05, CPU)


def stack(experts: int, rows: int, columns: int, seed: int = 0) -> Packed:
    each = [matrix(rows, columns, seed + number) for number in range(experts)]
    return Packed(*map(torch.stack, zip(*each, strict=True)))


def each(weight: Packed, index: int) -> torch.Tensor:
    return dequantise(Packed(*(tensor[index] for tensor in weight)), torch.float32)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """‖found - expected‖ / ‖expected‖."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    """What a kernel does not write is not a number: torch then fills what it takes with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@IN_EACH_DTYPE
@pytest.mark.parametrize("tokens", [1, 2, 7, 8, 9, 17])
@pytest.mark.parametrize("rows", [[96], [64, 16, 16], [40, 24, 24]], ids=str)
def test_project_is_the_product_with_each_matrix(dtype: torch.dtype, tokens: int, rows: list[int]) -> None:
    matrices = [matrix(count, 256, seed) for seed, count in enumerate(rows)]
    x = random(tokens, 256, dtype=dtype)
    parts = products.project(products.halve(x), matrices, TILE)
    assert parts.shape == (2, tokens, sum(rows))
    expected = torch.cat([x.float() @ dequantise(each, torch.float32).T for each in matrices], dim=1)
    assert error(parts.sum(0), expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("tile", [Tile(*shape) for shape in product((8, 16), (16, 64), (1, 2, 4), (1, 2))], ids=str)
def test_however_it_is_cut_it_is_the_same_product(tile: Tile) -> None:
    weight, x = matrix(80, 512), random(10, 512)
    found = products.project(products.halve(x), [weight], tile)
    assert error(found.sum(0), x @ dequantise(weight, torch.float32).T) < 2e-6


def layer(x: torch.Tensor, chosen: torch.Tensor, gate: Packed, up: Packed, down: Packed) -> torch.Tensor:
    """fp32 [T, k, N]: what each chosen expert makes of a token; 0 for none."""
    out = torch.zeros(*chosen.shape, down.packed.shape[1])
    for token, place in product(range(chosen.shape[0]), range(chosen.shape[1])):
        if (expert := int(chosen[token, place])) >= 0:
            seen = x[token].float()
            hidden = silu(each(gate, expert) @ seen) * (each(up, expert) @ seen)
            out[token, place] = each(down, expert) @ hidden
    return out


def through(x: torch.Tensor, members: products.Members, stacks: tuple[Packed, Packed, Packed]) -> torch.Tensor:
    gate, up, down = stacks
    hidden = products.gate_up(products.halve(x), gate, up, members, TILE)
    assert hidden.dtype == x.dtype
    return products.down(hidden, down, members, TILE).sum(0).view(*members.chosen.shape, -1)


@pytest.fixture(scope="module")
def stacks() -> tuple[Packed, Packed, Packed]:
    return stack(4, 128, 192), stack(4, 128, 192, 10), stack(4, 192, 128, 20)


@IN_EACH_DTYPE
@pytest.mark.parametrize("gathered", [False, True])
@pytest.mark.parametrize("tokens", [1, 2, 3, 13])
def test_experts(dtype: torch.dtype, gathered: bool, tokens: int, stacks: tuple[Packed, Packed, Packed]) -> None:
    x = random(tokens, 192, dtype=dtype)
    chosen = torch.rand(tokens, 4, generator=torch.Generator().manual_seed(tokens)).topk(2).indices.int()
    members = products.gather(chosen, 4) if gathered else products.scatter(chosen)
    assert error(through(x, members, stacks), layer(x, chosen, *stacks)) < 3 * TOLERANCE[dtype]


@pytest.mark.parametrize("tokens", [1, 31, 300])
def test_one_expert_takes_all_and_the_others_none(tokens: int, stacks: tuple[Packed, Packed, Packed]) -> None:
    x, chosen = random(tokens, 192), torch.full((tokens, 1), 2, dtype=torch.int32)
    assert error(through(x, products.gather(chosen, 4), stacks), layer(x, chosen, *stacks)) < 6e-6


@pytest.mark.parametrize("gathered", [False, True])
def test_who_has_no_expert_costs_nothing_and_hurts_nobody(
    gathered: bool, stacks: tuple[Packed, Packed, Packed]
) -> None:
    """Rows of a bucket that no sequence fills: their place stays as it was."""
    x, chosen = random(4, 192), torch.tensor([[0, 3], [-1, -1], [3, 1], [-1, -1]], dtype=torch.int32)
    x[1::2] = torch.nan
    members = products.gather(chosen, 4) if gathered else products.scatter(chosen)
    found = through(x, members, stacks)
    assert error(found[::2], layer(x, chosen, *stacks)[::2]) < 6e-6
    assert found[1::2].isnan().all()


def test_a_row_is_the_same_to_the_bit_whoever_shares_its_step(stacks: tuple[Packed, Packed, Packed]) -> None:
    x = random(12, 192)
    chosen = torch.rand(12, 4, generator=torch.Generator().manual_seed(0)).topk(2).indices.int()
    whole = through(x, products.gather(chosen, 4), stacks)
    for some in (slice(0, 3), slice(4, 12), slice(11, 12)):
        assert torch.equal(through(x[some], products.gather(chosen[some], 4), stacks), whole[some])


@pytest.mark.parametrize("tokens", [1, 5, 128, 300])
def test_the_sort_is_stable_and_leaves_out_who_has_none(tokens: int) -> None:
    chosen = torch.randint(-1, 8, (tokens, 2), generator=torch.Generator().manual_seed(tokens)).int()
    members = products.gather(chosen, 8)
    flat = chosen.flatten()
    counts = torch.bincount(flat[flat >= 0], minlength=8)
    assert members.starts.tolist() == [0, *counts.cumsum(0).tolist()]
    expected = flat.argsort(stable=True)[(flat < 0).sum() :]
    assert torch.equal(members.order[: len(expected)], expected.int())


@pytest.mark.parametrize("columns", [64, 192, 4096])
@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(torch.float32, 0), (torch.float16, 2**-11), (torch.bfloat16, 2**-8)],
    ids=str,
)
def test_dequantised_rows(columns: int, dtype: torch.dtype, bound: float) -> None:
    weight = matrix(24, columns)
    out = torch.full((9, columns), torch.nan, dtype=dtype)
    products.dequantise(weight, 0, 7, out)
    expected = dequantise(weight, torch.float32)[7:16]
    assert ((out.float() - expected).abs() <= bound * expected.abs()).all()


def test_stretched_values_are_nearer_than_what_bf16_makes_of_the_weights() -> None:
    """With bf16 factors a product is off by less than where each weight is rounded after it was scaled."""
    weight = matrix(512, 1024)
    x = random(64, 1024).bfloat16().double()
    whole = dequantise(weight, torch.float32).double()
    nf4 = codes(CPU)[0]
    nearest = (whole.view(-1, 64) / scales(weight)[:, None] - nf4.double()[:, None, None]).abs().argmin(0)
    stretch = kernels.STRETCH
    ours = ((nf4 * stretch).bfloat16().double() / stretch)[nearest] * scales(weight)[:, None]
    assert torch.equal((nf4[nearest].double() * scales(weight)[:, None]).float().view_as(whole).double(), whole)
    exact = x @ whole.T
    rounded = error(x @ whole.bfloat16().double().T, exact)
    stretched = error(x @ ours.view_as(whole).T, exact)
    assert stretched < 0.7 * rounded


def scales(weight: Packed) -> torch.Tensor:
    """fp64 [blocks]."""
    blocks = torch.arange(weight.absmax.numel())
    found = weight.code2[weight.absmax.long()] * weight.absmax2[blocks // 256] + weight.offset
    return found.double()


@pytest.mark.gpu
def test_on_a_card_ptx_decodes_what_the_table_does() -> None:
    """Each kernel by itself in bf16, full-sized steps of K, so that a failure names it."""
    cuda = torch.device("cuda")

    def there(weight: Packed) -> Packed:
        return Packed(*(tensor.to(cuda) for tensor in weight))

    weight, x = matrix(96, 512), random(5, 512, dtype=torch.bfloat16)
    out = torch.full((9, 512), torch.nan, dtype=torch.bfloat16, device=cuda)
    products.dequantise(there(weight), 0, 7, out)
    assert error(out.cpu(), dequantise(weight, torch.float32)[7:16]) < 2e-3
    parts = products.project(products.halve(x).to(cuda), [there(weight)], TILE)
    assert error(parts.cpu().sum(0), x.float() @ dequantise(weight, torch.float32).T) < 1.5e-3
    gate, up, down = stack(4, 128, 192), stack(4, 128, 192, 10), stack(4, 192, 128, 20)
    x = random(13, 192, dtype=torch.bfloat16)
    chosen = torch.rand(13, 4, generator=torch.Generator().manual_seed(0)).topk(2).indices.int()
    for members in (products.gather(chosen.to(cuda), 4), products.scatter(chosen.to(cuda))):
        made = through(x.to(cuda), members, (there(gate), there(up), there(down)))
        assert error(made.cpu(), layer(x, chosen, gate, up, down)) < 5e-3
