"""models/encoders.py: loaded once whoever asks, dropped only when idle, never more in memory than was set aside.

And the way of an encoder into the store: what is kept of a checkpoint, kills, damage.
"""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

from models import catalog, machine, manifest, network, origin, plan, source, store
from models.encoders import Encoders
from models.failure import Failure
from models.machine import Machine

CPU = torch.device("cpu")
MINILM, DEBERTA = catalog.MINILM.name, catalog.DEBERTA.name
Loads = list[str]


@pytest.fixture(autouse=True)
def tiny_rows(tiny_deberta: tuple[catalog.Encoder, Path], monkeypatch: pytest.MonkeyPatch) -> catalog.Encoder:
    """DeBERTa's row is that of the tiny one."""
    monkeypatch.setitem(catalog.ENCODERS, DEBERTA, tiny_deberta[0])
    return tiny_deberta[0]


@pytest.fixture(scope="module")
def both(
    encoder_home: Path, tiny_deberta: tuple[catalog.Encoder, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A store with MiniLM and the tiny DeBERTa."""
    path = tmp_path_factory.mktemp("both") / "models"
    shutil.copytree(encoder_home / "models", path)
    store.import_model(tiny_deberta[0], path, tiny_deberta[1])
    return path


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Loads:
    """Every load that begins, by name; each takes a moment, so that others come in between."""
    begun: Loads = []
    load = store.load

    def counted(item: Path, device: torch.device) -> store.Loaded:
        begun.append(item.parent.name)
        time.sleep(0.05)
        return load(item, device)

    monkeypatch.setattr(store, "load", counted)
    return begun


@pytest.fixture
def encoders(both: Path) -> Iterator[Encoders]:
    found = Encoders(both, machine.look("cpu"), rows=8, most=64)
    yield found
    found.stop()


def states(encoders: Encoders) -> dict[str, tuple[str, int]]:
    return {each["name"]: (each["state"], each["users"]) for each in encoders.detail()}


def held(encoders: Encoders) -> int:
    return sum(each["bytes"] for each in encoders.detail())


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_nothing_is_set_aside_where_none_is_imported_else_room_for_the_largest(both: Path, tmp_path: Path) -> None:
    assert plan.set_aside(tmp_path) == 0
    minilm, deberta = (plan.needed(catalog.ENCODERS[name], item) for name, item in plan.imported(both).items())
    assert plan.set_aside(both) == minilm > deberta
    planned = plan.of_row(catalog.MINILM)
    assert minilm == planned.weights + planned.workspace(8192, 512)


def test_32_callers_load_it_once(encoders: Encoders, loads: Loads) -> None:
    start = threading.Barrier(32)

    def use(_: int) -> str:
        start.wait()
        with encoders.use(MINILM) as encoder:
            return encoder.tag

    with ThreadPoolExecutor(32) as threads:
        assert len(set(threads.map(use, range(32)))) == 1
    assert loads == [MINILM]
    assert states(encoders) == {MINILM: ("loaded", 0), DEBERTA: ("not loaded", 0)}


def test_an_idle_one_gives_way_and_one_in_use_does_not(encoders: Encoders, loads: Loads) -> None:
    """There is room for the larger alone. Whoever waits for room is not passed by those who need none."""
    order: list[str] = []
    with encoders.use(MINILM), ThreadPoolExecutor(2) as threads:

        def use(name: str) -> None:
            with encoders.use(name):
                order.append(name)
                assert held(encoders) <= encoders.room

        first = threads.submit(use, DEBERTA)
        wait_until(lambda: encoders._next is not None)
        second = threads.submit(use, MINILM)
        time.sleep(0.05)
        assert states(encoders) == {MINILM: ("loaded", 1), DEBERTA: ("not loaded", 0)}
        assert not order
        encoders._leave(encoders._places[MINILM])  # what the end of the block does
        first.result(20), second.result(20)
        encoders._places[MINILM].users += 1
    assert order == [DEBERTA, MINILM]
    assert loads == [MINILM, DEBERTA, MINILM]


def test_where_there_is_room_for_both_none_is_dropped(encoders: Encoders, loads: Loads) -> None:
    encoders.room *= 2
    for _ in range(2):
        for name in (MINILM, DEBERTA):
            with encoders.use(name):
                pass
    assert loads == [MINILM, DEBERTA]
    assert 0 < held(encoders) <= encoders.room


def test_under_load_there_is_never_more_than_the_room(encoders: Encoders, loads: Loads) -> None:
    """Both are asked for without a pause by four; every use sees its own encoder and the bound kept."""
    seen: list[tuple[str, str]] = []

    def use(at: int) -> None:
        name = (MINILM, DEBERTA)[at % 2]
        for _ in range(2):
            with encoders.use(name) as encoder:
                assert held(encoders) <= encoders.room
                seen.append((name, encoder.row.name))
                time.sleep(0.002)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(use, range(4)))
    assert len(seen) == 8 and all(asked == got for asked, got in seen)
    assert all(users == 0 for _, users in states(encoders).values())


def test_a_load_that_fails_is_told_to_all_who_wait_and_tried_again(
    encoders: Encoders, both: Path, loads: Loads
) -> None:
    item = plan.imported(both)[MINILM]
    shard = item / "layer-003.safetensors"
    whole = shard.read_bytes()
    start = threading.Barrier(4)

    def use(_: int) -> Failure:
        start.wait()
        with pytest.raises(Failure) as failed, encoders.use(MINILM):
            pass
        return failed.value

    try:
        shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with ThreadPoolExecutor(4) as threads:
            failures = list(threads.map(use, range(4)))
    finally:
        shard.write_bytes(whole)
    for failure in failures:
        assert failure.code == "model_unavailable"
        assert "layer-003.safetensors" in failure.message and str(both) not in failure.message
    assert len(loads) <= 4
    assert states(encoders)[MINILM] == ("not loaded", 0) and held(encoders) == 0
    with encoders.use(MINILM):
        pass


def test_a_card_without_room_for_it_and_an_import_after_the_start_are_told(tmp_path: Path, both: Path) -> None:
    encoders = Encoders(tmp_path / "models", machine.look("cpu"), rows=8, most=8)
    with pytest.raises(Failure) as absent, encoders.use(MINILM):
        pass
    assert absent.value.code == "model_not_found"
    assert absent.value.message == f"{MINILM} is not imported: run scripts/import_model {MINILM}"
    shutil.copytree(both, tmp_path / "models")
    with pytest.raises(Failure) as late, encoders.use(MINILM):
        pass
    assert late.value.code == "model_unavailable"
    assert "0 are set aside" in late.value.message
    small = Machine("cpu", "the host", 1 << 30, 1 << 30)
    row = catalog.SMOLLM2
    with pytest.raises(Failure, match="free some"):
        plan.of_row(row).budget(replace(small, free=small.free - plan.set_aside(both)))


def test_batches_of_two_requests_take_turns(encoders: Encoders) -> None:
    """The one thread that computes takes them as they come: a small request is done long before a large one."""
    done: list[int] = []

    def run(rows: int) -> None:
        with encoders.use(MINILM) as encoder:
            for _ in encoder.run([[101, 7592, 102] * 20] * rows, 6, lambda said, mask: [0] * len(said), lambda _: True):
                pass
        done.append(rows)

    with ThreadPoolExecutor(2) as threads:
        large = threads.submit(run, 100)
        wait_until(lambda: states(encoders)[MINILM] == ("loaded", 1))
        threads.submit(run, 8).result(60)
        large.result(60)
    assert done == [8, 100]


def test_after_the_end_nothing_is_computed(both: Path) -> None:
    encoders = Encoders(both, machine.look("cpu"), rows=8, most=64)
    with encoders.use(MINILM) as encoder:
        encoders.stop()
        with pytest.raises(RuntimeError):
            list(encoder.run([[101, 102]], 6, lambda said, mask: [0], lambda _: True))


def test_of_minilm_all_but_the_pooler_is_stored_as_it_was(encoder_home: Path, minilm_folder: Path) -> None:
    item = plan.imported(encoder_home / "models")[MINILM]
    assert item.name == f"{catalog.MINILM.source.revision[:12]}-float32-2"
    published = load_file(minilm_folder / "model.safetensors")
    stored = {name: tensor for path in item.glob("*.safetensors") for name, tensor in load_file(path).items()}
    assert published.keys() - stored.keys() == {"pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids"}
    assert all(torch.equal(tensor, published[name]) for name, tensor in stored.items())
    found = manifest.read(item)
    assert (found.bits, found.dtype, found.architecture) == (32, "float32", "BertModel")
    assert found.resident_bytes == plan.of_row(catalog.MINILM).weights


def test_of_a_deberta_its_first_layers_are_kept_and_say_the_same(both: Path, tiny_deberta: Any) -> None:
    row, folder = tiny_deberta
    loaded = store.load(plan.imported(both)[DEBERTA], CPU)
    network.prove(loaded.network, plan.of_row(row).specs, CPU)
    assert loaded.network.config.num_hidden_layers == 3
    whole = AutoModel.from_pretrained(folder).eval()
    ids = torch.tensor([[1, 5, 6, 7, 2], [1, 8, 2, 0, 0]])
    mask = (ids > 0).long()
    with torch.inference_mode():
        theirs = whole(ids, attention_mask=mask, output_hidden_states=True).hidden_states[3]
        ours = loaded.network(ids, attention_mask=mask).last_hidden_state
    assert torch.equal(ours[mask.bool()], theirs[mask.bool()])


@pytest.fixture
def folder(tiny_deberta: tuple[catalog.Encoder, Path], tmp_path: Path) -> Path:
    """A copy of the tiny DeBERTa's checkpoint that may be damaged."""
    shutil.copytree(tiny_deberta[1], tmp_path / "source")
    return tmp_path / "source"


def change(folder: Path, **config: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))


def rewrite(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


LAST = "deberta.encoder.layer.2.output.dense.weight"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: change(folder, architectures=["BertModel"]), "does not describe a DebertaForSequenceClass"),
        (lambda folder: change(folder, auto_map={}), "config.json holds auto_map, which is refused"),
        (lambda folder: change(folder, num_hidden_layers=2), "the source has 2 layers; deberta-xlarge-mnli is read at"),
        (lambda folder: rewrite(folder, lambda it: it.pop(LAST)), "the source does not hold what its config says"),
        (lambda folder: rewrite(folder, lambda it: it[LAST].fill_(torch.nan)), "holds NaN or infinity"),
        (lambda folder: rewrite(folder, lambda it: it.update({LAST[8:]: it[LAST].clone()})), f"holds {LAST[8:]} twice"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no safetensors file; other formats are refused"),
    ],
)
def test_what_is_no_whole_checkpoint_is_not_imported(
    damage: Callable[[Path], object], said: str, folder: Path, tmp_path: Path, tiny_rows: catalog.Encoder
) -> None:
    damage(folder)
    with pytest.raises(Failure) as refused:
        store.import_model(tiny_rows, tmp_path / "models", folder)
    assert said in refused.value.message
    assert plan.imported(tmp_path / "models") == {}
    assert list((tmp_path / "models.staging").iterdir()) == []


def test_what_older_checkpoints_hold_besides_is_left_out(
    folder: Path, tmp_path: Path, tiny_rows: catalog.Encoder
) -> None:
    """The numbers of the positions, and a table of positions that a relative encoder does not use."""
    places = {"deberta.embeddings.position_embeddings.weight": torch.zeros(64, 32)}
    rewrite(folder, lambda it: it.update(places, **{"deberta.embeddings.position_ids": torch.arange(64)[None]}))
    store.import_model(tiny_rows, tmp_path / "models", folder)
    store.load(plan.imported(tmp_path / "models")[DEBERTA], CPU)


def test_without_a_revision_the_import_says_how_to_bring_one(tmp_path: Path) -> None:
    with pytest.raises(Failure) as refused:
        store.import_model(catalog.DEBERTA, tmp_path / "models")
    assert refused.value.code == "source_unavailable"
    for word in ("--revision COMMIT", "save_pretrained", "--source DIR"):
        assert word in refused.value.message
    named = replace(catalog.DEBERTA, source=origin.Hub("microsoft/deberta-xlarge-mnli", "ab" * 20))
    assert source.revision(named, None) == "abababababab"


def test_an_item_of_a_named_revision_is_found(tmp_path: Path, both: Path, tiny_rows: catalog.Encoder) -> None:
    shutil.copytree(both / DEBERTA, tmp_path / DEBERTA)
    item = plan.imported(tmp_path)[DEBERTA]
    item.rename(item.with_name("abababababab-float32-2"))
    (tmp_path / DEBERTA / "latest").write_text("abababababab-float32-2")
    assert manifest.locate(tiny_rows, tmp_path).name == "abababababab-float32-2"


def test_an_import_that_dies_leaves_nothing_that_loads(
    folder: Path, tmp_path: Path, tiny_rows: catalog.Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped as if killed, without any clean-up, at each shard in turn; the next import is whole."""
    models, rmtree = tmp_path / "models", shutil.rmtree

    class Killed(BaseException):
        pass

    for stop in range(4):
        saved: list[Path] = []

        def save(tensors: Any, file: Path, saved: list[Path] = saved, stop: int = stop, **more: Any) -> None:
            saved.append(file)
            if len(saved) > stop:
                raise Killed
            save_file(tensors, file, **more)

        def remove(path: Path, saved: list[Path] = saved, stop: int = stop, **more: Any) -> None:
            if len(saved) <= stop:  # the dead do not tidy up
                rmtree(path, **more)

        with monkeypatch.context() as patch:
            patch.setattr("models.shards.save_file", save)
            patch.setattr(shutil, "rmtree", remove)
            with suppress(Killed):
                store.import_model(tiny_rows, models, folder)
        assert plan.imported(models) == {} and len(saved) == stop + 1
    tag = store.import_model(tiny_rows, models, folder)
    assert manifest.verify(plan.imported(models)[DEBERTA]).tag == tag


def test_positions_are_numbered_where_nothing_is_stored() -> None:
    told = AutoConfig.for_model("bert", **{k: v for k, v in catalog.MINILM.config.items() if k != "architectures"})
    told.architectures = ["BertModel"]
    built: Any = network.build(told, torch.float32, 32).to_empty(device="cpu")
    built.embeddings.position_ids = built.embeddings.position_ids.to("meta")
    network.fill_constants(built, CPU)
    assert built.embeddings.position_ids.tolist() == [list(range(512))]
    assert built.embeddings.token_type_ids.tolist() == [[0] * 512]
