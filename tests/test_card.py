"""benchmarks/card on a CPU: each section runs whole on a tiny Mixtral, its figures are those of their formulas, a fault
in a kernel is seen, and what fails or was not measured says so. The kernels' own path runs in Triton's interpreter."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from benchmarks.card import (
    check,
    limits,
    load,
    operations,
    prefill,
    projection,
    report,
    rig,
    rows,
    run,
    sections,
    tune,
)
from benchmarks.card.clock import Timed
from benchmarks.card.limits import Limits
from benchmarks.card.rig import Rig
from benchmarks.card.sections import SECTIONS, Found, Section
from models import catalog, machine, network, plan
from models.engine import decoder
from models.engine.batch import Batch
from models.engine.cache import Cache
from models.engine.forward import Forward
from models.engine.graphs import Graphs
from models.engine.reference import Reference
from models.failure import Failure
from models.nf4 import experts, linear, paths
from models.nf4.matrix import Packed, multiply
from models.nf4.paths import Tile
from models.nf4.slices import Slices
from tests.conftest import ROOT, TINY_MIXTRAL

CPU = torch.device("cpu")
CONFIG = TINY_MIXTRAL
BF16 = plan.make("tiny", CONFIG.to_dict(), "bfloat16")
RTX_5090, H200 = Limits(1.792e12, 210e12), Limits(4.3e12, 790e12)
MIXTRAL, PLANNED = projection.sizes(), plan.of_row(catalog.MIXTRAL)
SMALL: dict[str, dict[str, Any]] = {
    "check": {"runs": ((6, 20, 8, 512),), "batches": (1, 3), "context": 40},
    "decode": {"batches": (1, 3, 64), "slow": (1,), "context": 40, "answer": 8, "repeats": 3},
    "documents": {"documents": 6, "clients": 3, "prompt": 40, "answer": 5, "shared": (0, 20)},
    "prefill": {"sizes": (16, 40), "slow": 40},
    "labels": {"prompt": 32, "labels": 3},
    "kernels": {"batches": (1, 2), "context": 40, "prompts": (20,)},
    "load": {},
    "operations": {"sizes": (3,)},
    "tune": {"steps": (2,), "context": 20},
}
KERNELS = ("operations", "tune")  # which take seconds in the interpreter


@dataclass(frozen=True)
class Small(Section):
    """A section with little to do."""

    def measure(self, rig: Rig) -> Found:
        found: Found = import_module(f"benchmarks.card.{self.name}").measure(rig, **SMALL[self.name])
        return found


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return rig.make(CONFIG, CPU, torch.float32)


@pytest.fixture(scope="module")
def there(model: PreTrainedModel) -> Rig:
    """The reference path on the CPU; 64 rows do not fit its 2,048 tokens."""
    return Rig(model, plan.make("tiny", CONFIG.to_dict(), "float32"), Limits(10e9, 100e9), 2048)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """A whole run of all sections but the kernels' own, in bf16, read back from its file."""
    path = tmp_path_factory.mktemp("card") / run.file_name("A Card", 2)
    wanted = tuple(Small(each.name, 1, "") for each in SECTIONS if each.name not in KERNELS)
    free = BF16.weights + plan.WORKSPACE["cuda"] + 2048 * BF16.kv_bytes_per_token
    card = machine.Machine("cuda", "A Card", free, 32 << 30, (12, 0), "1.2")
    told = run.measure(card, CONFIG, wanted, path, math.inf, "cpu")
    assert [file.name for file in path.parent.iterdir()] == ["card-a-card-2-layers.json"]
    read: Found = json.loads(path.read_text())
    assert list(read) == list(told)
    return read


def started(there: Rig) -> Found:
    """What a run has before its first section."""
    return {
        "card": {"name": "A Card", "total": 32 << 30, "capability": [12, 0], "driver": "1.2"},
        "host": {"CPU": "a CPU", "cores": "2", "commit": "abc", "date": "2026-11-21"},
        "versions": {"torch": "2"},
        "layers": 2,
        "limits": {"bandwidth": there.limits.bandwidth, "matmul": there.limits.matmul},
        "bytes": rig.prove(there.network, there.planned, CPU, 0),
    }


def numbers(value: Any) -> list[float]:
    """All numbers in what a section has found."""
    if isinstance(value, dict):
        return [number for each in value.values() for number in numbers(each)]
    if isinstance(value, list):
        return [number for each in value for number in numbers(each)]
    return [value] if isinstance(value, int | float) else []


# Limits


@pytest.mark.parametrize(
    ("batch", "gigabytes"), [(1, 7.0), (2, 11.5), (4, 17.7), (8, 23.5), (16, 27.3), (32, 30.8), (64, 37.3)]
)
def test_the_bytes_of_a_step_are_those_of_the_published_limit(batch: int, gigabytes: float) -> None:
    """For a context of 1,560 tokens, with experts, attention, lm_head and KV cache."""
    assert limits.step_bytes(PLANNED, MIXTRAL, batch, 1560) / 1e9 == pytest.approx(gigabytes, rel=1e-2)
    expected = limits.experts_expected(MIXTRAL, batch)
    given = limits.step_bytes(PLANNED, MIXTRAL, batch, 1560, expected)
    assert given == pytest.approx(limits.step_bytes(PLANNED, MIXTRAL, batch, 1560))
    assert limits.step_bytes(PLANNED, MIXTRAL, batch, 1560, 8.0) >= given


def test_the_operations_of_a_token_are_those_of_the_published_limit() -> None:
    assert limits.tokens_flop(MIXTRAL, 1) / 1e9 == pytest.approx(25.2, rel=2e-3)
    assert (limits.tokens_flop(MIXTRAL, 1) + limits.head_flop(MIXTRAL, 1)) / 1e9 == pytest.approx(25.5, rel=2e-3)
    assert limits.step_flop(MIXTRAL, 4, 100) == pytest.approx(4 * limits.step_flop(MIXTRAL, 1, 100))
    for card, seconds in ((RTX_5090, 0.183), (H200, 0.049)):
        assert limits.prefill_flop(MIXTRAL, 1500) / card.matmul == pytest.approx(seconds, rel=0.03)


@pytest.mark.parametrize(("card", "rates"), [(RTX_5090, (5.1, 6.7, 8.0)), (H200, (19.0, 25.0, 30.0))])
def test_documents_whose_decoding_rides(card: Limits, rates: tuple[float, ...]) -> None:
    found = [limits.documents_riding(MIXTRAL, card, 1500, 120, shared) for shared in (0, 400, 600)]
    assert found == pytest.approx(rates, rel=0.03)


@pytest.mark.parametrize(("card", "rates"), [(RTX_5090, (1.5, 3.4, 4.0, 4.5)), (H200, (4.1, 10.4, 13.3, 15.4))])
def test_documents_that_are_read_first(card: Limits, rates: tuple[float, ...]) -> None:
    found = [limits.documents_apart(PLANNED, MIXTRAL, card, batch, 1500, 120) for batch in (1, 16, 32, 64)]
    assert found == pytest.approx(rates, rel=0.03)


@pytest.mark.parametrize(("card", "rates"), [(RTX_5090, (5.4, 9.0)), (H200, (20.0, 34.0))])
def test_documents_with_labels_alone(card: Limits, rates: tuple[float, ...]) -> None:
    """The published figures leave out the labels' own tokens; ours do not, and so are lower."""
    found = [limits.labels_riding(MIXTRAL, card, 1500, 16, 0, shared) for shared in (0, 600)]
    assert found == pytest.approx(rates, rel=0.03)
    assert 0.9 * found[0] < limits.labels_riding(MIXTRAL, card, 1500, 16, 3) < found[0]


def test_limits_are_measured() -> None:
    found = limits.measure(CPU)
    assert 1e8 < found.bandwidth < 1e13
    assert 1e8 < found.matmul < 1e15


# The model


def test_the_model_is_the_planned_one(there: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    found = rig.prove(there.network, there.planned, CPU, 0)
    assert found["holds"]
    assert found["taken_bytes"] == found["planned_bytes"] == found["resident_bytes"]
    cuda = SimpleNamespace(type="cuda")
    monkeypatch.setattr(network, "prove", lambda *_: None)
    for beyond, holds in ((0, True), (4096, True), (117 << 20, False), (-1, False)):
        taken = 1000 + there.planned.weights + beyond
        monkeypatch.setattr(rig, "requested", lambda _, taken=taken: taken)
        assert rig.prove(there.network, there.planned, cuda, 1000)["holds"] is holds  # type: ignore[arg-type]
    other = plan.make("other", {**CONFIG.to_dict(), "num_hidden_layers": 1}, "float32")
    monkeypatch.undo()
    with pytest.raises(Failure, match=r"model\.layers\.1"):
        rig.prove(there.network, other, CPU, 0)


def test_full_size_is_mixtrals() -> None:
    assert plan.make("it", rig.config(32).to_dict(), "bfloat16").weights == PLANNED.weights


# The sections, by the reference path


def test_every_figure_is_a_number(found: Found) -> None:
    measured = {name: found[name] for name in SMALL if name not in KERNELS}
    for name, section in measured.items():
        assert "error" not in section, section
        assert section["took"] > 0
        assert all(math.isfinite(number) and number >= 0 for number in numbers(section)), name
    assert "projected" not in found


def test_the_check_holds(found: Found) -> None:
    section = found["check"]
    assert section["holds"]
    assert sections.holds(found)
    (greedy,) = section["greedy"]
    assert greedy["same"] == greedy["tokens"] == section["same"] == sum(8 - at * 8 // 2 // 6 for at in range(6))
    assert (section["worst_behind"], greedy["differences"]) == (0.0, [])
    assert [step["batch"] for step in section["steps"]] == [1, 3]
    assert all(step["error"] < 1e-2 for step in section["steps"])


def test_decode_is_told_beside_its_limit(found: Found) -> None:
    section, bandwidth = found["decode"], found["limits"]["bandwidth"]
    assert [row["batch"] for row in section["rows"]] == [1, 3]
    assert (section["left_out"], section["room_tokens"]) == ([64], 2048)
    for row in section["rows"]:
        assert row["by"] == "reference"
        assert row["bytes"] == limits.step_bytes(BF16, CONFIG, row["batch"], 40)
        assert row["limit_seconds"] == row["bytes"] / bandwidth
        assert row["fraction"] == pytest.approx(row["limit_seconds"] / row["seconds"])
        assert row["engine_fraction"] == pytest.approx(row["limit_seconds"] / row["engine_seconds"])
        assert row["engine_tokens_per_second"] == pytest.approx(row["batch"] / row["engine_seconds"])
        assert 2 <= row["experts"] <= min(4, 2 * row["batch"])
        met = limits.step_bytes(BF16, CONFIG, row["batch"], 40, row["experts"])
        assert row["fraction_met"] == pytest.approx(met / bandwidth / row["seconds"])
        assert ("reference_seconds" in row) == (row["batch"] == 1)


def test_documents_are_told_beside_their_ceiling(found: Found) -> None:
    told = found["documents"]["rows"]
    assert [(row["step_tokens"], row["shared"]) for row in told] == [(512, 0), (512, 20), (2048, 0), (2048, 20)]
    for row in told:
        ceiling = limits.documents_riding(CONFIG, Limits(**found["limits"]), 40, 5, row["shared"])
        assert row["ceiling"] == pytest.approx(ceiling)
        assert row["fraction"] == pytest.approx(row["documents_per_second"] / ceiling)
        assert (row["clients"], row["preempted"]) == (3, 0)


def test_prefill_is_told_beside_the_products_rate(found: Found) -> None:
    told = found["prefill"]["rows"]
    ways = ["as served", "tiles", "slices of 32 MiB", "slices of 128 MiB"]
    pairs = [(row["way"], row["tokens"]) for row in told]
    assert pairs == [*((way, size) for way in ways for size in (16, 40)), ("reference", 40)]
    for row in told:
        assert row["mfu"] == pytest.approx(row["flop"] / row["seconds"] / found["limits"]["matmul"])
        assert row["flop"] == limits.prefill_flop(CONFIG, row["tokens"])


def test_labels_are_scored(found: Found) -> None:
    assert [row["documents"] for row in found["labels"]["rows"]] == [1, 4]
    for row in found["labels"]["rows"]:
        assert row["finite"]
        assert row["labels_per_second"] == pytest.approx(3 * row["documents_per_second"])
        assert row["fraction"] == pytest.approx(row["documents_per_second"] / row["ceiling"])


def test_the_load_is_told(found: Found) -> None:
    section = found["load"]
    assert (section["layers"], section["of_layers"]) == (2, 2)
    for name in ("warm", "cold"):
        assert section[name]["bytes"] == found["bytes"]["planned_bytes"]
        assert section[name]["bytes_per_second"] == pytest.approx(section[name]["bytes"] / section[name]["seconds"])


def test_a_load_takes_what_there_is_room_and_time_for(there: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load.measure(there, seconds=0)["layers"] == 1
    monkeypatch.setattr(machine, "disk_free", lambda _: 1000)
    assert "no room for one layer" in load.measure(there)["left_out"]


def test_kernels_are_named(found: Found) -> None:
    steps = {name: told for name, told in found["kernels"].items() if isinstance(told, list)}
    assert list(steps) == ["decode, 1 rows", "decode, 2 rows", "prompt, 20 tokens"]
    assert all(told[0]["milliseconds"] >= told[-1]["milliseconds"] for told in steps.values())


# What is asked of a step


@torch.inference_mode()
def test_labels_behind_a_document_are_what_the_whole_would_be(there: Rig) -> None:
    """Logits behind each label's tokens, over shared blocks, are those of document and label read as one."""
    label = import_module("benchmarks.card.labels")
    forward = Reference(there.network, there.cache(2 * 32 + 2 * 3 * 16))
    prompts = [rows.random_ids(32, 100, seed) for seed in (1, 2)]
    said = [[[5, 6, 7], [8, 9, 10], [5, 11, 12]], [[5, 6, 7], [20, 21, 22], [30, 31, 32]]]
    forward(rows.reading(prompts, [range(31, 32)] * 2))
    made = forward(label.behind(said, 32)).view(2, 3, 2, -1)
    for document, prompt in enumerate(prompts):
        for number, tokens in enumerate(said[document]):
            fresh = Reference(there.network, there.cache(48))
            expected = fresh(rows.reading([[*prompt, *tokens]], [range(32, 34)]))
            torch.testing.assert_close(made[document, number], expected, rtol=1e-4, atol=1e-5)


def test_rows_of_one_seed_are_the_same_and_share_what_they_should() -> None:
    first, again = rows.sequences(3, 20, 4, 100, seed=2, shared=8), rows.sequences(3, 20, 4, 100, seed=2, shared=8)
    assert [row.prompt for row in first] == [row.prompt for row in again]
    assert {tuple(row.prompt[:8]) for row in first} == {tuple(rows.random_ids(8, 100))}
    assert len({tuple(row.prompt) for row in first}) == 3
    assert {len(row.prompt) for row in first} == {20}


def test_each_way_of_reading_is_the_one_it_says(there: Rig) -> None:
    """Slices of the size that is named, and whatever the step's size; graphs before that find their paths."""
    seen: list[tuple[int, bool, int]] = []

    def forward(network: PreTrainedModel, cache: Cache) -> Forward:
        scratch = vars(decoder)["Slices"](torch.float32, CPU)._scratch.nbytes
        small = paths.choose((12, 0), 1) is not None

        def step(batch: Batch) -> torch.Tensor:
            path = paths.choose((12, 0), 1)
            seen.append((scratch, small, path.tokens if path else 0))
            return torch.zeros(1)

        return Stub(step)

    prefill.measure(replace(there, forward=forward), sizes=(16,), scratch=(1 << 20, 2 << 20), slow=0)
    default = Slices(torch.float32, CPU)._scratch.nbytes
    assert list(dict.fromkeys(seen)) == [
        (default, True, 2),
        (default, True, 512),
        (1 << 20, True, 0),
        (2 << 20, True, 0),
    ]
    assert paths.choose((12, 0), 1) is not None


# What is wrong is seen


@dataclass
class Stub:
    """A forward that is a function."""

    step: Callable[[Batch], torch.Tensor]
    name: str = "stub"

    def __call__(self, batch: Batch) -> torch.Tensor:
        return self.step(batch)


def wrong(network: PreTrainedModel, cache: Cache) -> Forward:
    """As if every matrix's rows were read in another order."""
    right = Reference(network, cache)

    def flipped(x: torch.Tensor, weight: Packed, products: torch.dtype | None = None) -> torch.Tensor:
        return -multiply(x, weight).flip(-1)

    def step(batch: Batch) -> torch.Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(experts, "multiply", flipped)
            patch.setattr(linear, "multiply", flipped)
            return right(batch)

    return Stub(step)


def test_a_wrong_path_is_seen(there: Rig) -> None:
    found = check.measure(replace(there, forward=wrong), **SMALL["check"])
    assert not found["holds"]
    assert found["worst_behind"] > check.BEHIND
    assert not any(step["holds"] for step in found["steps"])
    assert found["greedy"][0]["differences"][0]["behind"] == found["worst_behind"]
    assert not sections.holds({"bytes": {"holds": True}, "check": found})


def test_a_difference_is_explained() -> None:
    logits = torch.zeros(3, 1000)
    logits[:, ::2] = 1.0
    logits[0, 7], logits[0, 8] = 4.03125, 4.0  # one unit of bf16's last place between 4 and 8
    logits[1, 7] = 9.0
    logits[2, 3], logits[2, 4] = 100.0, 0.0
    first, second = check.explain(logits, [8, 7, 4])
    assert (first["place"], first["near_tie"], first["ulps"]) == (0, True, pytest.approx(1.0))
    assert first["behind"] == pytest.approx(0.03125 / float(logits[0].std()))
    assert (second["place"], second["near_tie"], second["ulps"]) == (2, False, pytest.approx(200.0))
    assert check.explain(logits, [7, 7, 3]) == []


def test_the_kernels_path_agrees_with_the_reference(there: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Triton's interpreter: a prompt, decoding rows, and a step of three."""
    monkeypatch.setattr(check, "LEAST", 1)
    ours = replace(there, forward=lambda network, cache: Graphs(network, cache, (12, 0)))
    found = check.measure(ours, runs=((2, 12, 3, 512),), batches=(3,), context=20)
    assert found["holds"]
    assert found["same"] == found["tokens"] == 6
    assert 0 < found["steps"][0]["error"] < 1e-5


# The kernels by themselves


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is run again to be timed: the interpreter takes seconds."""

    def timed(device: torch.device, run: Callable[[], object], *_: int) -> Timed:
        run()
        return Timed(0.001, 0.001)

    monkeypatch.setattr(operations, "timed", timed)
    monkeypatch.setattr(tune, "timed", timed)
    monkeypatch.setattr(operations, "LAYERS", 1)


@pytest.mark.usefixtures("once")
def test_products_are_told_beside_those_of_bitsandbytes(there: Rig) -> None:
    found = operations.measure(there, **SMALL["operations"])["rows"]
    ways = ("ours", "bitsandbytes", "dequantised")
    assert [(row["operation"], row["way"]) for row in found] == [
        (kind, way) for kind in operations.KINDS for way in ways
    ]
    for row in found:
        assert row["fraction"] == pytest.approx(row["bytes"] / row["seconds"] / there.limits.bandwidth)
        assert row["way"] != "ours" or row["error"] < 1e-5
    layer = operations.layers_of(there.network)[0]
    assert found[0]["bytes"] == 128 * 32 + 128 * 1 + 3 * 4  # q, k and v: codes, scales, and a few scales of these
    given = operations.draw(there, 3, True)
    assert len(given.groups) == len(given.members.chosen.unique())
    one = operations.read_bytes("down", layer, given)
    assert operations.read_bytes("gate_up", layer, given) == 2 * one
    report.table(started(there) | {"operations": {"rows": found}})


@pytest.mark.usefixtures("once")
def test_tiles_are_searched(there: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[Found] = []
    monkeypatch.setattr(tune, "GROUPS", (("rows",),))
    monkeypatch.setattr(tune, "PARTS", (1, 2))
    found = tune.measure(replace(there, note=noted.append), **SMALL["tune"])
    assert [cell["operation"] for cell in found["cells"]] == list(operations.KINDS)
    assert len(noted) == 5
    for cell in found["cells"]:
        assert cell["error"] < 1e-5
        assert cell["tried"] >= 2
        assert cell["worth_it"] == (cell["gain"] > tune.WORTH)
        assert set(cell["best"]["tile"]) == set(Tile._fields)
    assert found["parts"][0]["current"] == paths.SM_120[0].parts
    text = report.table(started(there) | {"tune": found})
    assert "8, 32, 1, 1, 2, 4" in text
    assert tune.measure(replace(there, ends=monotonic() - 1))["ended"] == "out of time"


def test_hopeless_tiles_are_not_tried() -> None:
    cell = tune.Cell("down", paths.SM_120[1], 8, 14_336, given=None)  # type: ignore[arg-type]
    found = tune.candidates(cell, Tile(8, 32, 4), ("rows", "tokens", "warps"))
    assert {tile.tokens for tile in found} == {8}
    assert len(found) == 9
    wide = tune.candidates(replace(cell, tokens=64), Tile(8, 128, 1), ("tokens", "warps"))
    assert Tile(64, 128, 1, warps=2) not in wide
    assert Tile(64, 128, 1, warps=4) in wide
    assert Tile(32, 128, 1, warps=2) in wide
    gate = tune.candidates(replace(cell, kind="gate_up"), Tile(8, 64), ("splits",))
    assert gate == [Tile(8, 64)]


def test_parts_that_the_next_kernel_reads_are_charged(there: Rig) -> None:
    given = operations.draw(there, 3, False)
    layer = operations.layers_of(there.network)[0]
    cells = {kind: tune.Cell(kind, paths.SM_120[0], 3, 64, given) for kind in operations.KINDS}
    found = {kind: tune.parts_bytes(layer, cell, Tile(8, 32, 2)) for kind, cell in cells.items()}
    assert found == {
        "project": 2 * 3 * 128 * 4,
        "output": 2 * 3 * 64 * 4,
        "gate_up": 6 * 128 * 4,
        "down": 2 * 6 * 64 * 4,
    }


# The run


@dataclass(frozen=True)
class Broken(Section):
    def measure(self, rig: Rig) -> Found:
        rig.note({"rows": [{"batch": 1}]})
        raise RuntimeError("no such kernel")


def test_a_section_that_fails_does_not_stop_the_others(there: Rig) -> None:
    told, written = started(there), list[Found]()
    wanted = (Broken("decode", 1, ""), Small("kernels", 1, ""))
    sections.take(wanted, lambda note, _: replace(there, note=note), told, lambda: written.append(dict(told)), math.inf)
    assert told["decode"]["error"].strip().endswith("RuntimeError: no such kernel")
    assert told["decode"]["rows"] == [{"batch": 1}]
    assert "error" not in told["kernels"]
    assert [list(each)[6:] for each in written] == [["decode"], ["decode"], ["decode", "kernels"]]
    assert "Failed: RuntimeError: no such kernel" in report.table(told)


def test_errors_of_steps_are_kept_though_the_engine_goes_on(there: Rig) -> None:
    """It tries each half of a failed step again; the figures would say nothing of that."""

    def failing(network: PreTrainedModel, cache: Cache) -> Forward:
        right = Reference(network, cache)

        def step(batch: Batch) -> torch.Tensor:
            if len(batch.spans) > 1:
                raise torch.OutOfMemoryError("too many rows")
            return right(batch)

        return Stub(step)

    told = started(there)

    def rig_of(note: Callable[[Found], None], errors: list[str]) -> Rig:
        return replace(there, note=note, forward=run.watching(failing, errors))

    sections.take((Small("documents", 1, ""),), rig_of, told, lambda: None, math.inf)
    assert told["documents"]["failed_steps"] > 0
    assert "too many rows" in told["documents"]["first_failed_step"]
    assert "A step failed: torch.OutOfMemoryError: too many rows." in report.table(told)
    assert not sections.holds({"bytes": {"holds": True}, "check": {"holds": True, "failed_steps": 1}})


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    card = machine.Machine("cuda", "A Card", 1 << 30, 1 << 30)
    with pytest.raises(SystemExit, match="2 layers do not fit on A Card"):
        run.measure(card, CONFIG, (), tmp_path / "it.json", math.inf, "cpu")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_begun_after_the_end(there: Rig) -> None:
    told = started(there)
    sections.take((Broken("check", 1, ""),), lambda *_: there, told, lambda: None, monotonic() - 1)
    assert told["check"] == {"left_out": "out of time"}
    assert "Not measured: out of time." in report.table(told)
    assert not sections.holds(told)
    assert sections.holds({key: value for key, value in told.items() if key != "check"})


def test_each_section_is_a_module_that_is_told_of() -> None:
    assert [each.name for each in SECTIONS] == list(report.TELLERS)
    assert SECTIONS[-1].name == "tune"
    assert sum(each.seconds for each in SECTIONS[:-1]) <= 480
    for each in SECTIONS:
        assert callable(import_module(f"benchmarks.card.{each.name}").measure)


# Projection, table, picture


def recorded(found: Found, name: str) -> Found:
    """A run as it would be of all 32 layers on another card."""
    row = {"batch": 1, "seconds": 0.002, "fraction": 0.8, "bytes": 7.0e9, "engine_seconds": 0.0025} | {
        key: found["decode"]["rows"][0][key]
        for key in (
            "experts",
            "limit_seconds",
            "tokens_per_second",
            "engine_tokens_per_second",
            "engine_fraction",
            "flop",
        )
    }
    documents = {
        "prompt": 1500,
        "answer": 120,
        "rows": [found["documents"]["rows"][1] | {"fraction": 0.5, "shared": 600}],
    }
    return found | {
        "layers": 32,
        "card": found["card"] | {"name": name},
        "decode": found["decode"] | {"rows": [row, row | {"batch": 64}]},
        "documents": documents,
    }


def test_a_projection_says_that_it_is_one(found: Found, tmp_path: Path) -> None:
    told = recorded(found, "NVIDIA H200")
    run.write(told, tmp_path / "it.json")
    projected = json.loads((tmp_path / "it.json").read_text())["projected"]
    assert (projected["projected"], projected["card"], projected["from"]) == (True, projection.TARGET, "NVIDIA H200")
    (row,) = projected["decode"]  # 64 rows do not fit there
    assert row["seconds"] == pytest.approx(7.0e9 / projected["limits"]["bandwidth"] / 0.8)
    assert row["engine_seconds"] == pytest.approx(row["seconds"] + 0.0005)
    assert projected["documents"][0]["documents_per_second"] == pytest.approx(8.0 / 2, rel=0.03)
    text = report.table(told)
    assert "RTX 5090: projected, not measured" in text
    after = text[text.index("projected, not measured") :]
    assert all("projected" in line for line in after.splitlines() if line.startswith("| 1") or "| 600" in line)


def test_nothing_is_projected_from_part_of_a_model_or_onto_itself(found: Found) -> None:
    assert projection.project(found) is None
    assert projection.project(recorded(found, projection.TARGET)) is None


def test_the_table_tells_all(found: Found) -> None:
    text = report.table(found)
    assert text.startswith("A Card (12.0, 32 GiB, driver 1.2); ")
    assert f"torch {torch.__version__}" in text
    assert "2 layers, random NF4 weights" in text
    for name, teller in report.TELLERS.items():
        assert (f"**{teller.title}**" in text) == (name not in KERNELS)
    assert "Engine and reference agree" in text
    assert "64 rows do not fit 2,048 tokens of KV cache." in text
    assert "projected" not in text
    for line in text.splitlines():
        assert not line.startswith("|") or line.endswith("|")


def test_a_table_of_what_was_stopped_has_dashes(found: Found) -> None:
    rows = [{key: value for key, value in row.items() if "engine" not in key} for row in found["decode"]["rows"]]
    text = report.table(
        {**found, "decode": {"rows": rows, "left_out": [], "unfinished": True}, "load": {"error": "a\nb"}}
    )
    assert "Unfinished; as far as it went:" in text
    assert "Failed: b." in text
    assert "No figures." in text


def test_the_picture_is_drawn(found: Found, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.card import plot

    plot.draw(found, tmp_path / "it.png")
    plot.draw({**found, "decode": {"error": "it failed"}, "prefill": {}}, tmp_path / "bare.png")
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in tmp_path.iterdir())


# The command


def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, "-m", "benchmarks.card", *arguments]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.skipif(machine.card() is not None, reason="there is a GPU here")
def test_without_a_card_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    done = command("--out", str(tmp_path / "out"))
    assert (done.returncode, done.stdout) == (0, "there is no NVIDIA card here; nothing was measured\n")
    assert list(tmp_path.iterdir()) == []


def test_help_tells_what_each_section_takes() -> None:
    text = command("--help").stdout
    assert all(f"{each.name:<12}{each.seconds:>4} s" in text for each in SECTIONS)
    strange = command("--only", "decode,speed")
    assert strange.returncode == 2
    assert "'speed' is none of check, decode" in strange.stderr


def test_an_earlier_run_is_told_again(found: Found, tmp_path: Path) -> None:
    path = tmp_path / "it.json"
    path.write_text(json.dumps(found))
    done = command("--plot", str(path))
    assert (done.returncode, done.stdout) == (0, f"{report.table(found)}\n")
    assert (tmp_path / "it.png").exists() or "no picture" in done.stderr


@pytest.mark.gpu
def test_one_full_width_layer_on_the_card(tmp_path: Path) -> None:
    card = machine.card()
    assert card is not None
    wanted = tuple(each for each in SECTIONS if each.name in ("check", "decode"))
    found = run.measure(card, rig.config(1), wanted, tmp_path / "it.json", monotonic() + 240)
    assert sections.holds(found), found
    assert 0 < found["decode"]["rows"][0]["fraction"] < 1.1
