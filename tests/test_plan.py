"""models/plan.py: every byte of a model from its config alone, beside sums done by hand and real modules."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoConfig

from models import catalog, manifest, network, plan
from models.failure import Failure
from models.machine import Machine
from models.nf4.layout import Spec

MEND = "free some, ask for fewer tokens (ZOPILOT_KV_TOKENS), or take a larger card or a smaller model"
MIB = 1 << 20
GIB = 1 << 30
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "tie_word_embeddings": True,
}
TINY_MIXTRAL = {
    **LLAMA,
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_local_experts": 3,
    "tie_word_embeddings": False,
}


def card(free: int) -> Machine:
    return Machine("cuda", "the card", free, free, (12, 0), "580.95.05")


def host(free: int) -> Machine:
    return Machine("cpu", "the host", free, free)


def refused(config: Mapping[str, Any], dtype: str = "bfloat16") -> str:
    with pytest.raises(Failure) as failure:
        plan.make("it", config, dtype)
    assert failure.value.code == "model_unsupported"
    assert "\n" not in failure.value.message
    start, _, why = failure.value.message.partition(": ")
    assert start == "it cannot be planned"
    return why


# Mixtral 8x7B by hand: hidden 4096, intermediate 14336, 32 layers, 8 experts, 32 heads of 128, 8 of them for keys.
EXPERTS = 32 * 8 * 3 * 14_336 * 4096  # gate, up, down
ATTENTION = 32 * (2 * 4096 * 4096 + 2 * 8 * 128 * 4096)  # q and o; k and v
ROUTER = 32 * 8 * 4096
NORMS = (32 * 2 + 1) * 4096
EMBEDDINGS = 2 * 32_000 * 4096  # not tied


def test_mixtral_group_by_group() -> None:
    """Two weights a byte where quantised; one byte for 64 of those, four for 256 of them, and for each matrix an
    offset of four bytes and codes of 16 and 256 floats."""
    matrices = 32 * (4 + 8 * 3)
    assert matrices == 32 * 28
    blocks = (EXPERTS + ATTENTION) // 64
    constants = blocks + 4 * (blocks // 256) + matrices * (4 + 4 * (16 + 256))
    by_hand = {
        "experts": EXPERTS // 2,
        "attention": ATTENTION // 2,
        "router": ROUTER * 2,
        "norms": NORMS * 2,
        "embeddings": EMBEDDINGS * 2,
        "quantisation constants": constants,
    }
    assert by_hand == {
        "experts": 22_548_578_304,
        "attention": 671_088_640,
        "router": 2_097_152,
        "norms": 532_480,
        "embeddings": 524_288_000,
        "quantisation constants": 737_930_752,
    }
    assert plan.of_row(catalog.MIXTRAL).ledger == by_hand


def test_mixtral_in_all() -> None:
    planned = plan.of_row(catalog.MIXTRAL)
    assert planned.name == "mixtral-8x7b-instruct"
    assert planned.weights == 24_484_515_328
    assert planned.kv_bytes_per_token == 2 * 32 * 8 * 128 * 2 == 131_072
    assert planned.parameters == EXPERTS + ATTENTION + ROUTER + NORMS + EMBEDDINGS == 46_702_792_704


def test_mixtral_in_32_gb_leaves_room_for_33_documents_in_flight() -> None:
    planned = plan.of_row(catalog.MIXTRAL)
    shown = int(31.36 * GIB)  # what CUDA shows of an RTX 5090
    tokens = (shown - 24_484_515_328 - 2 * GIB) // 131_072
    assert planned.budget(card(shown)) == tokens == 53_715
    assert tokens // (1500 + 120) == tokens // plan.DOCUMENT == 33


def test_smollm2_by_hand() -> None:
    """Hidden 576, intermediate 1536, 30 layers, 9 heads of 64, 3 of them for keys; its embeddings serve as head."""
    matrices = 30 * (2 * 576 * 576 + 2 * 3 * 64 * 576 + 3 * 1536 * 576)
    norms = (30 * 2 + 1) * 576
    embeddings = 49_152 * 576
    planned = plan.of_row(catalog.SMOLLM2)
    assert planned.parameters == matrices + norms + embeddings == 134_515_008
    assert planned.ledger["embeddings"] == 4 * embeddings
    assert planned.ledger["norms"] == 4 * norms
    assert planned.ledger["mlp"] + planned.ledger["attention"] == matrices // 2
    assert planned.kv_bytes_per_token == 2 * 30 * 3 * 64 * 4


def test_a_matrix_that_does_not_fill_its_last_block_of_blocks_rounds_up() -> None:
    """k_proj of SmolLM2: 192 rows of 576 are 1,728 blocks, which take 6.75 blocks of 256."""
    planned = plan.of_row(catalog.SMOLLM2)
    assert planned.specs["model.layers.0.self_attn.k_proj.absmax"] == Spec("uint8", (192 * 576 // 64,))
    assert planned.specs["model.layers.0.self_attn.k_proj.absmax2"] == Spec("float32", (7,))


@pytest.mark.parametrize("row", catalog.ROWS.values(), ids=catalog.ROWS)
def test_the_ledger_sums_to_the_weights(row: catalog.Model) -> None:
    planned = plan.of_row(row)
    assert sum(planned.ledger.values()) == planned.weights
    assert planned.specs.keys() == planned.groups.keys()
    assert set(planned.groups.values()) == set(planned.ledger) < set(plan.GROUPS)


def test_a_group_without_bytes_is_left_out() -> None:
    assert list(plan.make("it", LLAMA, "float32").ledger) == [
        "mlp",
        "attention",
        "norms",
        "embeddings",
        "quantisation constants",
    ]
    there = [group for group in plan.GROUPS if group not in ("mlp", "vision")]
    assert list(plan.make("it", TINY_MIXTRAL, "float32").ledger) == there


def test_the_dtype_is_that_of_what_is_not_quantised() -> None:
    half, whole = (plan.make("it", TINY_MIXTRAL, dtype) for dtype in ("float16", "float32"))
    for group in ("router", "norms", "embeddings"):
        assert whole.ledger[group] == 2 * half.ledger[group]
    for group in ("experts", "attention", "quantisation constants"):
        assert whole.ledger[group] == half.ledger[group]
    assert whole.kv_bytes_per_token == 2 * half.kv_bytes_per_token
    assert whole.parameters == half.parameters


def test_tied_embeddings_are_counted_once() -> None:
    once = plan.make("it", LLAMA, "bfloat16")
    twice = plan.make("it", {**LLAMA, "tie_word_embeddings": False}, "bfloat16")
    assert twice.weights - once.weights == 100 * 128 * 2
    assert twice.specs.keys() - once.specs.keys() == {"lm_head.weight"}


def test_heads_are_as_wide_as_the_config_says_or_share_the_hidden_size() -> None:
    shared = plan.make("it", LLAMA, "bfloat16")
    assert shared.specs == plan.make("it", {**LLAMA, "head_dim": None}, "bfloat16").specs
    assert shared.specs == plan.make("it", {**LLAMA, "head_dim": 32}, "bfloat16").specs
    assert shared.kv_bytes_per_token == 2 * 2 * 2 * 32 * 2
    wide = plan.make("it", {**LLAMA, "head_dim": 96}, "bfloat16")
    assert wide.specs["model.layers.1.self_attn.q_proj.packed"].shape == (4 * 96, 128 // 2)
    assert wide.specs["model.layers.1.self_attn.v_proj.packed"].shape == (2 * 96, 128 // 2)
    assert wide.specs["model.layers.1.self_attn.o_proj.packed"].shape == (128, 4 * 96 // 2)
    assert wide.kv_bytes_per_token == 2 * 2 * 2 * 96 * 2


def test_without_heads_for_keys_of_its_own_a_model_has_one_for_every_head() -> None:
    every = plan.make("it", {**LLAMA, "num_key_value_heads": 4}, "bfloat16")
    assert every.kv_bytes_per_token == 2 * 2 * 4 * 32 * 2
    assert every == plan.make("it", {**LLAMA, "num_key_value_heads": None}, "bfloat16")
    assert refused({**TINY_MIXTRAL, "num_key_value_heads": None}).startswith("num_key_value_heads is None, ")
    absent = {name: value for name, value in LLAMA.items() if name != "num_key_value_heads"}
    assert plan.make("it", absent, "bfloat16") == plan.make("it", {**LLAMA, "num_key_value_heads": 4}, "bfloat16")


def real(config: Mapping[str, Any], dtype: torch.dtype, bits: int = 4) -> dict[str, Spec]:
    """The parameters of the module that would be loaded."""
    described = dict(config)
    return network.specs(network.build(AutoConfig.for_model(described.pop("model_type"), **described), dtype, bits))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "config",
    [
        LLAMA,
        TINY_MIXTRAL,
        {**LLAMA, "tie_word_embeddings": False},
        {**TINY_MIXTRAL, "tie_word_embeddings": True},
        {name: value for name, value in LLAMA.items() if name != "tie_word_embeddings"},
        {name: value for name, value in TINY_MIXTRAL.items() if name != "tie_word_embeddings"},
        {**LLAMA, "head_dim": 48},
        {**LLAMA, "head_dim": None},
        {**TINY_MIXTRAL, "head_dim": 80},
        {**TINY_MIXTRAL, "head_dim": None},
        {**LLAMA, "num_key_value_heads": 4},
        {**LLAMA, "num_key_value_heads": None},
        {name: value for name, value in LLAMA.items() if name != "num_key_value_heads"},
        {**TINY_MIXTRAL, "num_key_value_heads": 1, "num_local_experts": 1, "num_experts_per_tok": 1},
        {**LLAMA, "attention_bias": False, "mlp_bias": False},
    ],
)
def test_a_plan_holds_the_parameters_of_the_real_module(config: dict[str, Any], dtype: torch.dtype) -> None:
    assert plan.make("it", config, str(dtype).removeprefix("torch.")).specs == real(config, dtype)


@pytest.mark.parametrize("row", catalog.ROWS.values(), ids=catalog.ROWS)
def test_the_rows_are_planned_as_their_real_modules_in_full_size(row: catalog.Model) -> None:
    kinds = {"LlamaForCausalLM": "llama", "MixtralForCausalLM": "mixtral", catalog.SEEING: "qwen2_5_vl"}
    config = {**row.config, "model_type": kinds[row.architecture]}
    assert plan.of_row(row).specs == real(config, getattr(torch, row.dtype), row.bits)


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    keys = draw(st.integers(1, 3))
    heads = keys * draw(st.integers(1, 3))
    config = {
        **draw(st.sampled_from([LLAMA, TINY_MIXTRAL])),
        "hidden_size": heads * 64 * draw(st.integers(1, 2)),  # transformers wants a multiple of the heads
        "intermediate_size": 64 * draw(st.integers(1, 6)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "vocab_size": draw(st.integers(3, 300)),
        "tie_word_embeddings": draw(st.booleans()),
        "head_dim": draw(st.sampled_from([None, 64, 128])),
    }
    if "num_local_experts" in config:
        config["num_local_experts"] = draw(st.integers(2, 5))
    return config


@settings(max_examples=40, deadline=None)
@given(configs(), st.sampled_from([torch.float32, torch.bfloat16]))
def test_any_plan_holds_the_parameters_of_the_real_module(config: dict[str, Any], dtype: torch.dtype) -> None:
    planned = plan.make("it", config, str(dtype).removeprefix("torch."))
    found = real(config, dtype)
    assert planned.specs == found
    assert planned.weights == sum(spec.nbytes for spec in found.values()) == sum(planned.ledger.values())


@settings(max_examples=40, deadline=None)
@given(configs(), st.integers(3, 12))
def test_every_layer_adds_the_same(config: dict[str, Any], layers: int) -> None:
    one, two, many = (plan.make("it", {**config, "num_hidden_layers": n}, "bfloat16") for n in (1, 2, layers))
    assert one.ledger.keys() == two.ledger.keys() == many.ledger.keys()
    for group, count in many.ledger.items():
        assert count == one.ledger[group] + (layers - 1) * (two.ledger[group] - one.ledger[group])
    assert many.kv_bytes_per_token == layers * one.kv_bytes_per_token
    assert many.parameters == one.parameters + (layers - 1) * (two.parameters - one.parameters)


@pytest.mark.parametrize(
    "architectures",
    [
        ["Qwen2ForCausalLM"],
        ["LlamaModel"],
        ["MistralForCausalLM"],
        ["llamaforcausallm"],
        [""],
        [],
        [None],
        [["LlamaForCausalLM"]],
        ["LlamaForCausalLM", "LlamaForCausalLM"],
        ["LlamaForCausalLM", "MixtralForCausalLM"],
        ("LlamaForCausalLM",),
        "LlamaForCausalLM",
        {"LlamaForCausalLM": 0},
        None,
        7,
    ],
    ids=repr,
)
def test_other_architectures_than_one_that_is_known_are_refused(architectures: Any) -> None:
    assert refused({**LLAMA, "architectures": architectures}) == (
        f"architectures is {architectures!r}; known: {', '.join(plan.ANATOMIES)}"
    )


@pytest.mark.parametrize("bias", ["attention_bias", "mlp_bias"])
@pytest.mark.parametrize("config", [LLAMA, TINY_MIXTRAL], ids=["llama", "mixtral"])
def test_a_bias_is_refused(config: dict[str, Any], bias: str) -> None:
    assert refused({**config, bias: True}) == "layers with a bias are not known"


SIZES = {
    "hidden_size": 1 << 24,
    "intermediate_size": 1 << 24,
    "num_hidden_layers": 1000,
    "num_attention_heads": 1 << 24,
    "num_key_value_heads": 1 << 24,
    "head_dim": 1 << 24,
    "vocab_size": 1 << 24,
    "num_local_experts": 1000,
}
DEFAULTS = ("num_key_value_heads", "head_dim")  # these may be absent


@pytest.mark.parametrize("name", ["architectures", *(name for name in SIZES if name not in DEFAULTS)])
def test_a_missing_key_is_refused_and_named(name: str) -> None:
    missing = refused({key: value for key, value in TINY_MIXTRAL.items() if key != name})
    assert missing.startswith(f"{name} is None")
    assert refused({**TINY_MIXTRAL, name: None}) == missing


@pytest.mark.parametrize(
    "value",
    [0, -1, -64, -(1 << 70), 2.0, 2.5, -2.0, 1e300, float("nan"), float("inf"), True, False, "2", "", [2], {}],
    ids=repr,
)
@pytest.mark.parametrize("name", SIZES)
def test_a_size_that_is_no_whole_number_in_its_range_is_refused_with_key_and_value(name: str, value: Any) -> None:
    assert (
        refused({**TINY_MIXTRAL, name: value}) == f"{name} is {value!r}, not a whole number from 1 to {SIZES[name]:,}"
    )


@pytest.mark.parametrize(("name", "most"), SIZES.items(), ids=SIZES)
def test_a_size_larger_than_any_model_is_refused(name: str, most: int) -> None:
    for value in (most + 1, 10**15, 1 << 70):
        assert refused({**TINY_MIXTRAL, name: value}) == f"{name} is {value}, not a whole number from 1 to {most:,}"


def test_the_largest_sizes_are_planned() -> None:
    """Only one of them at a time is so large."""
    for name, most in SIZES.items():
        alone = {"num_attention_heads": most} if name == "num_key_value_heads" else {"num_key_value_heads": 1}
        assert plan.make("it", {**TINY_MIXTRAL, "head_dim": 64, **alone, name: most}, "bfloat16").weights > 0
    assert plan.make("it", {**TINY_MIXTRAL, "vocab_size": 1}, "bfloat16").specs["lm_head.weight"].shape == (1, 128)


def test_a_message_says_all_of_it() -> None:
    with pytest.raises(Failure) as failure:
        plan.make("my-model", {**LLAMA, "num_hidden_layers": "2"}, "bfloat16")
    assert failure.value.message == (
        "my-model cannot be planned: num_hidden_layers is '2', not a whole number from 1 to 1,000"
    )


def test_the_experts_of_a_dense_model_are_not_looked_at() -> None:
    assert plan.make("it", {**LLAMA, "num_local_experts": "8"}, "bfloat16") == plan.make("it", LLAMA, "bfloat16")


def test_heads_that_the_hidden_size_cannot_be_shared_by_are_refused() -> None:
    assert refused({**LLAMA, "num_attention_heads": 258}).startswith("head_dim is 0, not a whole number from 1 to ")
    for heads, kv_heads in ((4, 3), (4, 8), (32, 5)):
        change = {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
        assert refused({**LLAMA, **change}) == f"{heads} heads cannot share the keys of {kv_heads}"


def test_a_window_that_the_engine_would_ignore_is_refused() -> None:
    assert refused({**TINY_MIXTRAL, "sliding_window": 4}) == "attention within a sliding window is not known"
    assert plan.make("it", {**TINY_MIXTRAL, "sliding_window": None}, "bfloat16").weights > 0


@pytest.mark.parametrize("chosen", [0, 9, -1, 2.0, "2", True])
def test_more_experts_a_token_than_there_are_is_refused(chosen: Any) -> None:
    told = {**TINY_MIXTRAL, "num_local_experts": 8, "num_experts_per_tok": chosen}
    assert refused(told) == f"num_experts_per_tok is {chosen!r}, not a whole number from 1 to 8"


def test_a_long_value_is_not_told_whole() -> None:
    assert len(refused({**LLAMA, "hidden_size": [7] * 100_000})) < 200


@pytest.mark.parametrize("name", ["attention_bias", "mlp_bias", "tie_word_embeddings"])
@pytest.mark.parametrize("value", ["true", "", 2, -1, 0.5, [], {}], ids=repr)
def test_a_switch_that_is_neither_true_nor_false_is_refused(name: str, value: Any) -> None:
    assert refused({**LLAMA, name: value}) == f"{name} is {value!r}, neither true nor false"


def test_a_switch_of_null_is_off() -> None:
    off = {"attention_bias": None, "mlp_bias": None, "tie_word_embeddings": None}
    assert plan.make("it", {**LLAMA, **off}, "bfloat16") == plan.make(
        "it", {**LLAMA, "tie_word_embeddings": False}, "bfloat16"
    )


@pytest.mark.parametrize("config", [None, [], [LLAMA], "LlamaForCausalLM", 7], ids=str)
def test_a_config_that_is_no_object_is_refused(config: Any) -> None:
    assert refused(config) == "the config is no JSON object"


@pytest.mark.parametrize(
    ("change", "columns"),
    [({"hidden_size": 96, "head_dim": 32}, 96), ({"intermediate_size": 100}, 100), ({"head_dim": 40}, 160)],
)
def test_a_width_that_cannot_be_quantised_is_refused(change: dict[str, int], columns: int) -> None:
    assert refused({**LLAMA, **change}) == f"{columns} columns are not a multiple of 64"


@pytest.mark.parametrize("dtype", ["int4", "torch.bfloat16", "auto", "float64", "BFLOAT16", ""])
def test_a_dtype_of_unknown_size_is_refused(dtype: str) -> None:
    assert refused(LLAMA, dtype) == f"dtype is {dtype!r}; bfloat16, float16, float32 are known"


def test_a_memory_of_just_the_right_size_is_enough_and_one_byte_less_is_not() -> None:
    planned = plan.of_row(catalog.MIXTRAL)
    needed = 24_484_515_328 + 2 * GIB + 8192 * 131_072
    assert needed == 27_705_740_800
    assert planned.budget(card(needed)) == 8192
    with pytest.raises(Failure) as failure:
        planned.budget(card(needed - 1))
    assert failure.value.code == "memory_too_small"
    assert failure.value.message == (
        "mixtral-8x7b-instruct needs 27,705,740,800 bytes: 24,484,515,328 of weights, 2,147,483,648 of workspace, "
        "1,073,741,824 for 8,192 tokens of KV cache; the card has 27,705,740,799 free, 1 too few; "
        "free some, ask for fewer tokens (ZOPILOT_KV_TOKENS), or take a larger card or a smaller model"
    )


def test_wanted_tokens_are_honoured_or_refused() -> None:
    planned = plan.of_row(catalog.MIXTRAL)
    weights_and_workspace = 24_484_515_328 + 2 * GIB
    for tokens in (1, 100, 8191, 8192, 50_000):
        needed = weights_and_workspace + tokens * 131_072
        assert planned.budget(card(needed), tokens) == tokens
        assert planned.budget(card(200 * GIB), tokens) == tokens
        with pytest.raises(Failure) as failure:
            planned.budget(card(needed - 1), tokens)
        assert failure.value.code == "memory_too_small"
        assert f"needs {needed:,} bytes: " in failure.value.message
        assert f"{tokens * 131_072:,} for {tokens:,} tokens of KV cache; " in failure.value.message
        assert failure.value.message.endswith(f"the card has {needed - 1:,} free, 1 too few; {MEND}")


def test_on_a_card_all_that_fits_is_taken() -> None:
    planned = plan.of_row(catalog.MIXTRAL)
    for tokens in (8192, 32_768, 32_769, 700_000):
        needed = 24_484_515_328 + 2 * GIB + tokens * 131_072
        assert planned.budget(card(needed)) == planned.budget(card(needed + 131_071)) == tokens
        assert planned.budget(card(needed + 131_072)) == tokens + 1


def test_on_a_cpu_no_more_than_32768_tokens_are_taken_unasked() -> None:
    planned = plan.of_row(catalog.SMOLLM2)
    a_token = 2 * 30 * 3 * 64 * 4
    for tokens, granted in ((8192, 8192), (32_767, 32_767), (32_768, 32_768), (32_769, 32_768), (500_000, 32_768)):
        assert planned.budget(host(planned.weights + 512 * MIB + tokens * a_token)) == granted
    assert planned.budget(host(planned.weights + 512 * MIB + 40_000 * a_token), 40_000) == 40_000


def test_a_cpu_too_small_is_refused_with_its_own_workspace() -> None:
    planned = plan.of_row(catalog.SMOLLM2)
    needed = planned.weights + 512 * MIB + 8192 * 2 * 30 * 3 * 64 * 4
    assert planned.budget(host(needed)) == 8192
    with pytest.raises(Failure) as failure:
        planned.budget(host(needed - 1000))
    assert failure.value.code == "memory_too_small"
    assert failure.value.message.startswith(f"smollm2-135m-instruct needs {needed:,} bytes: {planned.weights:,} of ")
    assert "536,870,912 of workspace" in failure.value.message
    assert failure.value.message.endswith(f"the host has {needed - 1000:,} free, 1,000 too few; {MEND}")


def test_no_memory_at_all_is_refused_and_its_room_negative() -> None:
    planned = plan.of_row(catalog.MIXTRAL)
    assert planned.room(card(0)) < 0
    with pytest.raises(Failure, match="the card has 0 free, 27,705,740,800 too few; "):
        planned.budget(card(0))


@settings(max_examples=100, deadline=None)
@given(free=st.integers(0, 64 * GIB), wanted=st.integers(0, 300_000), device=st.sampled_from([card, host]))
def test_what_is_granted_always_fits(free: int, wanted: int, device: Any) -> None:
    planned = replace(plan.make("it", LLAMA, "bfloat16"), kv_bytes_per_token=131_072)
    machine = device(free)
    workspace = 2 * GIB if machine.device == "cuda" else 512 * MIB
    needed = planned.weights + workspace + (wanted or 8192) * 131_072
    if free < needed:
        with pytest.raises(Failure) as failure:
            planned.budget(machine, wanted)
        assert failure.value.message.endswith(f" {free:,} free, {needed - free:,} too few; {MEND}")
    else:
        tokens = planned.budget(machine, wanted)
        assert tokens == wanted if wanted else tokens >= 8192
        assert planned.weights + workspace + tokens * 131_072 <= free


def stored(item: Path) -> Iterator[tuple[str, int]]:
    """Name and bytes of every tensor in an item's files."""
    for file in item.glob("*.safetensors"):
        with safe_open(file, "pt") as shard:
            for name in shard.keys():  # noqa: SIM118 - a safetensors file is no mapping
                yield name, shard.get_tensor(name).nbytes


def test_an_item_is_planned_from_its_own_config(tiny_home: Path) -> None:
    item = manifest.locate(catalog.SMOLLM2, tiny_home / "models")
    planned = plan.of_item("smollm2-135m-instruct", item, "float32")
    assert {name: spec.nbytes for name, spec in planned.specs.items()} == dict(stored(item))
    assert planned.ledger == manifest.read(item).ledger
    assert planned.weights < plan.of_row(catalog.SMOLLM2).weights  # it is the tiny one


def test_the_experts_of_an_item_are_planned_from_its_own_config(tiny_mixtral_home: Path) -> None:
    item = manifest.locate(catalog.MIXTRAL, tiny_mixtral_home / "models")
    planned = plan.of_item("mixtral-8x7b-instruct", item, "bfloat16")
    assert {name: spec.nbytes for name, spec in planned.specs.items()} == dict(stored(item))


def test_an_item_is_planned_by_its_config_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY_MIXTRAL))
    assert plan.of_item("it", tmp_path, "bfloat16") == plan.make("it", TINY_MIXTRAL, "bfloat16")


@pytest.mark.parametrize("text", [None, b"", b"{", b'{"hidden_size": 64,}', b"\xff\xfe", b"no JSON"], ids=repr)
def test_a_missing_or_broken_config_is_a_broken_model(tmp_path: Path, text: bytes | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(Failure) as failure:
        plan.of_item("it", tmp_path, "bfloat16")
    assert failure.value.code == "model_broken"
    assert failure.value.message == "it: config.json cannot be read"


@pytest.mark.parametrize("text", ["[]", "null", "7", '"text"', "{}"])
def test_a_config_of_something_else_is_unsupported(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(Failure) as failure:
        plan.of_item("it", tmp_path, "bfloat16")
    assert failure.value.code == "model_unsupported"


def test_a_model_of_16_bits_has_one_tensor_a_matrix() -> None:
    planned = plan.make("it", LLAMA, "bfloat16", 16)
    assert planned.specs == real(LLAMA, torch.bfloat16, 16)
    assert plan.GROUPS[-1] not in planned.ledger
    assert planned.parameters == plan.make("it", LLAMA, "bfloat16").parameters
    assert planned.kv_bytes_per_token == plan.make("it", LLAMA, "bfloat16").kv_bytes_per_token


@pytest.mark.parametrize(
    "config, dtype, bits, why",
    [
        (LLAMA, "bfloat16", 32, "bits is 32; a bfloat16 model has 4 or 16"),
        (LLAMA, "float32", 16, "bits is 16; a float32 model has 4 or 32"),
        (LLAMA, "int8", 8, "dtype is 'int8'; bfloat16, float16, float32 are known"),
        (TINY_MIXTRAL, "bfloat16", 16, "experts of 16 bits are not known"),
    ],
)
def test_bits_that_are_not_known_are_refused(config: dict[str, Any], dtype: str, bits: int, why: str) -> None:
    with pytest.raises(Failure) as refused:
        plan.make("it", config, dtype, bits)
    assert refused.value.message == f"it cannot be planned: {why}"
