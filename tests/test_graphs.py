"""models/engine/graphs.py, decoder.py, varlen.py: steps by our kernels, in Triton's interpreter, beside the reference.

In fp32, where both agree to rounding; a bucket's padding, every path of the table and slices are gone through.
"""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, MixtralConfig, PreTrainedModel

from models import network
from models.engine import graphs, varlen
from models.engine.attention import FEW, Span
from models.engine.batch import Batch
from models.engine.cache import Cache
from models.engine.decoder import computes
from models.engine.engine import Engine
from models.engine.forward import pick
from models.engine.graphs import BUCKETS, Graphs
from models.engine.reference import Reference
from models.engine.sequence import Sampling, Sequence
from models.failure import Failure
from models.nf4 import paths
from models.nf4.linear import NF4Weight
from models.nf4.matrix import quantise
from models.nf4.slices import Slices
from tests.conftest import TINY_MIXTRAL

CPU = torch.device("cpu")
CONFIG = TINY_MIXTRAL


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    """A tiny Mixtral, fp32, with random weights in NF4."""
    built = network.build(CONFIG, torch.float32)
    generator = torch.Generator().manual_seed(0)
    for module in list(built.modules()):
        for name, weight in list(module.named_parameters(recurse=False)):
            if not isinstance(module, NF4Weight):
                made = torch.randn(weight.shape, generator=generator) * 0.3
                made = made if weight.dim() > 1 else made + 1
                setattr(module, name, nn.Parameter(made, requires_grad=False))
        if isinstance(module, NF4Weight):
            count = module.stack[0] if module.stack else 1
            parts = [
                quantise(torch.randn(module.rows, module.columns, generator=generator) * 0.2, CPU) for _ in range(count)
            ]
            for name, tensors in zip(parts[0]._fields, zip(*parts, strict=True), strict=True):
                whole = torch.stack(tensors) if module.stack else tensors[0]
                setattr(module, name, nn.Parameter(whole, requires_grad=False))
    network.fill_constants(built, CPU)
    return built


def cast(model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """The same NF4 weights, everything else in `dtype`."""
    made = network.build(CONFIG, dtype)
    for name, weight in model.named_parameters():
        parent, _, attribute = name.rpartition(".")
        moved = nn.Parameter(weight.to(device, weight.dtype if "_proj." in name else dtype), requires_grad=False)
        setattr(made.get_submodule(parent), attribute, moved)
    network.fill_constants(made, device)
    return made


def cache(dtype: torch.dtype = torch.float32) -> Cache:
    return Cache(2, 2, 16, dtype, CPU, 512)


class Both:
    """The same batches through both, each with a cache of its own."""

    def __init__(self, model: PreTrainedModel, capability: tuple[int, int]) -> None:
        dtype = model.lm_head.weight.dtype
        self.ours, self.reference = Graphs(model, cache(dtype), capability), Reference(model, cache(dtype))
        self._generator = torch.Generator().manual_seed(0)

    def batch(self, *rows: tuple[list[int], int, int]) -> Batch:
        """Each row: its blocks, how many tokens it has, how many it brings; the last of these is wanted."""
        spans: list[Span] = []
        offset = 0
        for table, start, count in rows:
            spans.append(Span(table, offset, start, count))
            offset += count
        ids = torch.randint(0, 100, (offset,), generator=self._generator).tolist()
        positions = [at for span in spans for at in range(span.start, span.end)]
        return Batch(ids, positions, spans, [span.here.stop - 1 for span in spans])

    @torch.inference_mode()
    def compare(self, *rows: tuple[list[int], int, int]) -> None:
        batch = self.batch(*rows)
        expected = self.reference(batch)
        assert (self.ours(batch) - expected).abs().max() < 1e-5 * expected.abs().max()


FIRST, SECOND, THIRD = [3, 1, 7], [2, 9], [5, 6, 8, 4]
LONG = list(range(10, 32))


@pytest.mark.parametrize("capability", [(9, 0), (12, 0)], ids=str)
def test_steps_of_every_kind_agree(model: PreTrainedModel, capability: tuple[int, int]) -> None:
    both = Both(model, capability)
    both.compare((FIRST, 0, 30))  # a prompt
    both.compare((FIRST, 30, 1))  # one row decodes
    both.compare((FIRST, 31, 3), (SECOND, 0, 5))  # with a draft, beside a short prompt, in one bucket
    both.compare((FIRST, 34, 1), (THIRD, 0, 40), (SECOND, 5, 1))  # between two that decode a prompt is read
    both.compare((THIRD, 40, 17), (SECOND, 6, 1))  # and goes on, over a block's border
    both.compare((FIRST, 35, 1), (LONG, 0, 66))  # too many for a bucket


@pytest.mark.parametrize("tokens", [*BUCKETS, 3, 7, 17, 33])
def test_every_bucket_full_and_with_one_row_to_spare(model: PreTrainedModel, tokens: int) -> None:
    """Rows have read nothing, some or much of what lies in their blocks."""
    rows = [([at % 32], at * 5 % 16, 1) for at in range(min(tokens, 32))]
    rows += [([at], (at * 5 + 3) % 16, 1) for at in range(tokens - 32)]
    Both(model, ((12, 0), (9, 0))[tokens % 2]).compare(*rows)


@pytest.mark.parametrize("by_slices", [False, True])
def test_in_bf16_it_is_off_by_no_more_than_rounding(
    model: PreTrainedModel, by_slices: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a card: there the reference rounds each weight, ours the 16 values, and both what one layer hands on."""
    narrow = cast(model, CPU, torch.bfloat16)
    if by_slices:
        monkeypatch.setattr(paths, "choose", lambda *_: None)
    both = Both(narrow, (12, 0))
    exact = Reference(model, cache())
    for rows in ([(FIRST, 0, 18)], [(FIRST, 18, 1), (SECOND, 0, 3)])[by_slices:]:
        batch = both.batch(*rows)
        with torch.inference_mode():
            wanted = exact(batch)
            ours, theirs = (
                float((way(batch).float() - wanted).norm() / wanted.norm()) for way in (both.ours, both.reference)
            )
        assert ours < max(1.5 * theirs, 0.02)


def test_slices_agree(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    both = Both(model, (12, 0))
    monkeypatch.setattr(paths, "choose", lambda *_: None)
    both.compare((FIRST, 5, 1), (LONG, 0, 70), (SECOND, 4, 2))


def test_bitsandbytes_products_agree_where_the_table_names_them(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = paths.SM_120[1]._replace(project=None, output=None)
    monkeypatch.setattr(paths, "choose", lambda *_: path)
    both = Both(model, (12, 0))
    both.compare((FIRST, 0, 5), (SECOND, 3, 1))


@pytest.mark.parametrize("nbytes", [16 * 64 * 4, 5 << 10, 1 << 20])
def test_however_thin_the_slices_the_product_is_the_same(nbytes: int) -> None:
    weight, x = quantise(torch.randn(80, 64), CPU), torch.randn(3, 64)
    whole = Slices(torch.float32, CPU).project(x, [weight])
    assert torch.allclose(Slices(torch.float32, CPU, nbytes).project(x, [weight]), whole, rtol=1e-5, atol=1e-5)


def test_scratch_for_less_than_a_slice_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        Slices(torch.float32, CPU, 1000).project(torch.randn(3, 64), [quantise(torch.randn(80, 64), CPU)])


def test_a_row_is_the_same_to_the_bit_in_whatever_place_of_a_bucket(model: PreTrainedModel) -> None:
    """What the other rows are, and what stood in the bucket before, does not matter."""
    ours = Graphs(model, cache(), (12, 0))
    with torch.inference_mode():
        ours(Batch([5] * 30, list(range(30)), [Span(FIRST, 0, 0, 30)], [29]))
        ours(Batch([6] * 9, list(range(9)), [Span(SECOND, 0, 0, 9)], [8]))
        alone = [Span(SECOND, 0, 9, 1), Span(THIRD, 1, 0, 1), Span(LONG, 2, 0, 1)]
        three = ours(Batch([7, 8, 9], [9, 0, 0], alone, [0]))
        beside = [Span(FIRST, 0, 30, 1), Span(THIRD, 1, 0, 1), Span(LONG, 2, 0, 1), Span(SECOND, 3, 9, 1)]
        four = ours(Batch([1, 2, 3, 7], [30, 0, 0, 9], beside, [3]))
    assert torch.equal(three, four)


def test_a_card_that_computes_nonsense_is_not_served_from(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "batches", lambda _: [graphs._batch([1]), graphs._batch([1, 9])])
    ours = Graphs(model, cache(), (12, 0))
    with torch.inference_mode():
        ours._warm_up()
        monkeypatch.setattr(ours, "_compute", lambda step: torch.full((len(step.ids), 100), torch.nan))
        with pytest.raises(Failure, match="machine_unfit"):
            ours._warm_up()


@pytest.mark.parametrize("capability", [(9, 0), (12, 0), (8, 9)], ids=str)
def test_the_warm_up_has_steps_of_every_kind(capability: tuple[int, int]) -> None:
    kinds = set()
    for batch in graphs.batches(capability):
        path = paths.choose(capability, len(batch.ids))
        long = {span.count > FEW for span in batch.spans}
        kinds.add((path.tokens if path else 0, True in long, False in long))
        assert len(batch.ids) == len(batch.positions) == sum(span.count for span in batch.spans)
    every = {(path.tokens, False, True) for path in paths.of(capability)}
    large = {(tokens, *rows) for tokens in (512, 0) for rows in ((False, True), (True, False), (True, True))}
    assert kinds == every | large


def test_padding_writes_no_keys(model: PreTrainedModel) -> None:
    """A bucket's spare rows have slot 0, which is a sequence's."""
    mine = cache()
    ours = Graphs(model, mine, (12, 0))
    with torch.inference_mode():
        ours(Batch([5] * 16, list(range(16)), [Span([0], 0, 0, 16)], [15]))
        before = mine.pool.clone()
        ours(Batch([1, 2, 3], [0, 0, 0], [Span([at], at - 1, 0, 1) for at in (1, 2, 3)], [0, 1, 2]))
    assert torch.equal(mine.pool[:, :, :16], before[:, :, :16])
    assert not torch.equal(mine.pool[:, :, 16:64], before[:, :, 16:64])


def test_an_engine_says_the_same_through_either(model: PreTrainedModel) -> None:
    """Greedy answers of rows that come and go, share a beginning and end at different times."""

    def run(engine: Engine) -> list[list[int]]:
        shared = [11, 12, 13, 14, 15, 16, 17, 18] * 3
        rows = [Sequence([*shared, 20 + at], Sampling(3 + at)) for at in range(3)] + [Sequence([9] * 40, Sampling(4))]
        for row in rows:
            engine.submit(row)
        with torch.inference_mode():
            for _ in range(40):
                engine.step()
        assert all(row.future.result(0) for row in rows)
        return [row.output for row in rows]

    options = {"kv_tokens": 512, "step_tokens": 64, "queue_tokens": 1 << 20}
    ours = Engine(model, set(), **options, forward=lambda model, cache: Graphs(model, cache, (12, 0)))  # type: ignore[arg-type]
    assert run(ours) == run(Engine(model, set(), **options))  # type: ignore[arg-type]


def test_on_a_cpu_the_reference_computes(model: PreTrainedModel) -> None:
    assert isinstance(pick(model, cache()), Reference)


def test_only_what_the_kernels_are_written_for_takes_them(model: PreTrainedModel) -> None:
    assert computes(model)
    llama = network.build(LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=1), torch.float32)
    assert not computes(llama)
    for odd in ({"hidden_act": "gelu"}, {"sliding_window": 64}, {"num_local_experts": 6}):
        assert not computes(network.build(MixtralConfig(**{**CONFIG.to_dict(), **odd}), torch.float32))


@pytest.mark.parametrize("capability", [(9, 0), (12, 0), (8, 9)], ids=str)
def test_the_table_has_a_path_for_every_bucket(capability: tuple[int, int]) -> None:
    for tokens in BUCKETS:
        path = paths.choose(capability, tokens)
        assert path is not None
        assert path.tokens >= tokens
    assert paths.choose(capability, 2000) is None


def test_prompt_pieces_are_read_in_one_go() -> None:
    """Causal from the end: a piece that goes on sees all before it."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(30, 4, 16, generator=generator)
    keys, values = torch.randn(2, 512, 2, 16, generator=generator)
    pieces = varlen.Pieces.lay([Span(FIRST, 2, 0, 20), Span(SECOND, 23, 10, 7)], CPU)
    found = pieces.attend(queries, keys, values, 0.25)
    for row, table, position in ((2, FIRST, 0), (21, FIRST, 19), (23, SECOND, 10), (29, SECOND, 16)):
        at = [table[each // 16] * 16 + each % 16 for each in range(position + 1)]
        seen, told = (each[at].repeat_interleave(2, 1) for each in (keys, values))
        weights = torch.einsum("hd,thd->ht", queries[row] * 0.25, seen).softmax(-1)
        expected = torch.einsum("ht,thd->hd", weights, told)
        place = pieces.rows.tolist().index(row)
        assert torch.allclose(found[place], expected, atol=1e-5)


@pytest.mark.parametrize("shares", [True, False])
def test_flash_attention_is_asked_as_this_torch_wants_it(shares: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert varlen.FLASH
    assert varlen.SHARES
    monkeypatch.setattr(varlen, "SHARES", shares)
    pieces = varlen.Pieces.lay([Span(FIRST, 0, 0, 20)], CPU)
    asked, pool = torch.zeros(20, 4, 16).half(), torch.zeros(20, 2, 16).half()
    # All checks of arguments are passed before the kernel itself is missed here.
    with pytest.raises(NotImplementedError, match="CPU"):
        pieces.by_flash(asked, pool, pool, 0.25)


@pytest.mark.parametrize("fault", ["none", "missing", "wrong"])
def test_flash_attention_is_taken_where_it_does_what_sdpa_does(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SDPA stands in for the kernel that only a card has."""

    def flash(pieces: varlen.Pieces, *given: Any) -> torch.Tensor:
        if fault == "missing":
            raise RuntimeError("no kernel image is available for execution on the device")
        found = pieces.by_sdpa(*given)
        return found.flip(0) if fault == "wrong" else found

    monkeypatch.setattr(varlen.Pieces, "by_flash", flash)
    varlen.works.cache_clear()
    assert varlen.works(CPU, torch.float16, 4, 2, 16) is (fault == "none")
    varlen.works.cache_clear()


@pytest.mark.gpu
@torch.inference_mode()
def test_a_captured_step_is_what_is_launched_and_near_the_reference(model: PreTrainedModel) -> None:
    """bf16 on the card, where PTX decodes: rounding apart, what transformers' layers say of the same weights."""
    cuda = torch.device("cuda")
    there = cast(model, cuda, torch.bfloat16)
    pools = [Cache(2, 2, 16, torch.bfloat16, cuda, 512) for _ in range(2)]
    ours, reference = Graphs(there, pools[0], torch.cuda.get_device_capability()), Reference(there, pools[1])
    prompt = Batch(list(range(40)), list(range(40)), [Span(FIRST, 0, 0, 40)], [39])
    after = Batch([50, 51], [40, 0], [Span(FIRST, 0, 40, 1), Span(SECOND, 1, 0, 1)], [0, 1])
    for batch in (prompt, after):
        expected = reference(batch).float()
        assert (ours(batch).float() - expected).norm() < 0.03 * expected.norm()
    replayed = ours(after).clone()
    assert torch.equal(ours._compute(ours._step(2)), replayed)
    assert torch.equal(ours(after), replayed)
