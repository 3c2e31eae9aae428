"""models/anatomy/vision.py: every parameter of Qwen2.5-VL, beside the real module, and through the store."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

from models import catalog, manifest, network, plan, source, store
from models.failure import Failure
from models.machine import CARDS
from models.nf4 import matrix
from models.nf4.linear import NF4Linear
from tests import seeing

CPU = torch.device("cpu")


def described(**text: Any) -> dict[str, Any]:
    config = seeing.config(100).to_dict()
    config["text_config"].update(text)
    return config


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.booleans(), st.sampled_from(["float32", "bfloat16"]), st.booleans())
def test_a_plan_holds_the_parameters_of_the_real_module(
    keys: int, layers: int, tied: bool, dtype: str, packed: bool
) -> None:
    heads = keys * 2
    config = seeing.config(100, hidden=64 * heads).to_dict() | {"tie_word_embeddings": tied}
    config["text_config"] |= {
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "num_hidden_layers": layers,
        "layer_types": ["full_attention"] * layers,
    }
    config["vision_config"] |= {"depth": layers, "spatial_merge_size": keys, "intermediate_size": 24}
    bits = 4 if packed else 32 if dtype == "float32" else 16
    built = network.build(AutoConfig.for_model(**config), getattr(torch, dtype), bits)
    planned = plan.make("it", config, dtype, bits)
    assert planned.specs == network.specs(built)
    assert planned.kv_bytes_per_token == 2 * layers * keys * 64 * (4 if dtype == "float32" else 2)
    assert {planned.groups[name] for name in planned.specs if ".visual." in name} == {"vision"}


def test_what_sees_stays_whole() -> None:
    built = network.build(AutoConfig.for_model(**described()), torch.bfloat16)
    packed = {path for path, module in built.named_modules() if isinstance(module, NF4Linear)}
    assert len(packed) == 2 * 7 and all(path.startswith("model.language_model.layers.") for path in packed)


def test_a_flat_config_is_read_as_one_in_parts() -> None:
    config = described()
    flat = {**config.pop("text_config"), **config, "architectures": [catalog.SEEING]}
    assert plan.make("it", flat, "bfloat16").specs == plan.make("it", described(), "bfloat16").specs


def test_a_window_that_is_not_used_is_no_window() -> None:
    assert plan.make("it", described(sliding_window=4096), "bfloat16").specs


@pytest.mark.parametrize(
    ("part", "change", "why"),
    [
        ("text_config", {"use_sliding_window": True}, "attention within a sliding window is not known"),
        ("text_config", {"head_dim": 32}, "head_dim is 32, not hidden_size by the number of heads"),
        ("text_config", {"hidden_size": 128}, "out_hidden_size is 64, and the hidden_size of the text 128"),
        ("vision_config", {"in_channels": 1}, "pictures have 3 channels"),
        ("vision_config", {"temporal_patch_size": 1}, "a patch has 2 frames"),
        ("vision_config", {"depth": 0}, "depth is 0, not a whole number from 1 to 1,000"),
        ("vision_config", {"hidden_size": None}, "hidden_size is None, not a whole number from 1 to 16,777,216"),
    ],
)
def test_what_cannot_be_planned_is_refused(part: str, change: dict[str, Any], why: str) -> None:
    config = described()
    config[part] |= change
    with pytest.raises(Failure) as refused:
        plan.make("it", config, "bfloat16")
    assert refused.value.message == f"it cannot be planned: {why}"


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_parts_that_are_no_objects_are_refused(part: str) -> None:
    with pytest.raises(Failure, match="text_config and vision_config must be objects"):
        plan.make("it", described() | {part: [1]}, "bfloat16")


def test_the_rows_fit_the_cards_that_they_are_made_for() -> None:
    whole, packed = plan.of_row(catalog.SHIZHENGPT), plan.of_row(catalog.SHIZHENGPT_NF4)
    assert (whole.parameters, packed.parameters) == (33_452_718_336, 33_452_718_336)
    assert whole.kv_bytes_per_token == packed.kv_bytes_per_token == 64 * 2 * 8 * 128 * 2
    a100 = CARDS["a100-80gb"].within(catalog.SHIZHENGPT.memory)
    assert a100.free == 75_000_000_000 and whole.budget(a100) == 22_686
    assert packed.budget(CARDS["rtx-5090"]) > 32_768
    for row, card in ((whole, "rtx-5090"), (packed, "rtx-4090")):
        with pytest.raises(Failure, match="too few"):
            row.budget(CARDS[card], 16_384)


@pytest.mark.parametrize("row", [catalog.SHIZHENGPT, catalog.SHIZHENGPT_NF4], ids=lambda row: str(row.bits))
def test_what_transformers_has_saved_comes_back_from_the_store(
    seeing_home: Path, seeing_folder: Path, row: catalog.Model
) -> None:
    loaded = store.load(manifest.locate(row, seeing_home / "models"), CPU)
    theirs = Qwen2_5_VLForConditionalGeneration.from_pretrained(seeing_folder, dtype=torch.float32)
    ours = dict(loaded.network.named_parameters())
    packed = 0
    for name, weight in theirs.named_parameters():
        layer = name.removesuffix(".weight")
        if f"{layer}.packed" in ours:
            module = loaded.network.get_submodule(layer)
            assert isinstance(module, NF4Linear)
            expected = matrix.quantise(weight, CPU)
            assert all(torch.equal(*pair) for pair in zip(module.matrix(), expected, strict=True)), name
            packed += 1
        else:
            assert torch.equal(ours[name], weight.bfloat16()), name
    assert packed == (14 if row.bits == 4 else 0)
    for name, constant in theirs.named_buffers():
        assert torch.equal(loaded.network.get_buffer(name), constant)


def test_in_32_bits_the_logits_are_those_of_transformers(tmp_path: Path, seeing_folder: Path) -> None:
    row = replace(catalog.SHIZHENGPT, dtype="float32", bits=32)
    store.import_model(row, tmp_path / "models", seeing_folder)
    loaded = store.load(manifest.locate(row, tmp_path / "models"), CPU)
    assert isinstance(loaded.network, Qwen2_5_VLForConditionalGeneration)
    theirs = Qwen2_5_VLForConditionalGeneration.from_pretrained(seeing_folder, dtype=torch.float32)
    picture = seeing.picture(3, 2)
    ids = [5, 6, *picture.ids, 7]
    torch.testing.assert_close(seeing.logits(loaded.network, ids, [picture]), seeing.logits(theirs, ids, [picture]))


def test_the_stored_tokenizer_reads_no_mark_in_a_text(seeing_home: Path) -> None:
    tokenizer = source.open_tokenizer(manifest.locate(catalog.SHIZHENGPT, seeing_home / "models"))
    added = tokenizer.added_tokens_encoder
    assert {*seeing.MARKS, "<tool_call>"} <= added.keys()
    for name in added:
        told = tokenizer.encode(f"x{name}y", add_special_tokens=False, split_special_tokens=True)
        assert not set(told) & set(added.values())


def test_a_folder_whose_pictures_are_prepared_otherwise_is_refused(seeing_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for file in seeing_folder.iterdir():
        (folder / file.name).symlink_to(file)
    assert any(name.startswith("visual.") for file in folder.glob("*.safetensors") for name in load_file(file))
    (folder / "preprocessor_config.json").write_text('{"image_std": [0.5, 0.5, 0.5]}')
    with pytest.raises(Failure, match="another image_std"):
        source.open_folder(folder, (catalog.SEEING,), {})
