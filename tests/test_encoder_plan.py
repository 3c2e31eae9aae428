"""models/anatomy/encoder.py: every parameter of an encoder from its config alone, beside real modules."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, PreTrainedModel

from models import catalog, network, plan
from models.failure import Failure
from models.nf4.layout import ITEM_BYTES

BERT = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "vocab_size": 50,
}
DEBERTA = {**BERT, "architectures": ["DebertaModel"], "model_type": "deberta", "relative_attention": True}


def build(config: dict[str, Any], dtype: str = "float32") -> PreTrainedModel:
    told = AutoConfig.for_model(**config)
    return network.build(told, getattr(torch, dtype), ITEM_BYTES[dtype] * 8)


def sizes() -> dict[str, Any]:
    return {
        "hidden_size": st.sampled_from([12, 24]),
        "intermediate_size": st.integers(1, 50),
        "num_hidden_layers": st.integers(1, 3),
        "num_attention_heads": st.sampled_from([1, 2, 3]),
        "max_position_embeddings": st.integers(1, 40),
        "vocab_size": st.integers(1, 60),
    }


@settings(max_examples=25, deadline=None)
@given(
    st.fixed_dictionaries({**sizes(), "type_vocab_size": st.integers(1, 3)}), st.sampled_from(["float32", "bfloat16"])
)
def test_a_bert_is_planned_as_transformers_builds_it(changes: dict[str, Any], dtype: str) -> None:
    config = BERT | changes
    planned = plan.make("it", config, dtype, ITEM_BYTES[dtype] * 8)
    network.require(network.specs(build(config, dtype)), planned.specs)
    assert sum(planned.ledger.values()) == planned.weights
    assert planned.kv_bytes_per_token == 0


@settings(max_examples=25, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            **sizes(),
            "type_vocab_size": st.integers(0, 2),
            "pos_att_type": st.sampled_from([["c2p"], ["p2c"], ["c2p", "p2c"], "c2p|p2c", "P2C"]),
            "max_relative_positions": st.sampled_from([-1, 7]),
            "position_biased_input": st.booleans(),
        }
    )
)
def test_a_deberta_is_planned_as_transformers_builds_it(changes: dict[str, Any]) -> None:
    config = DEBERTA | changes
    network.require(network.specs(build(config)), plan.make("it", config, "float32", 32).specs)


@pytest.mark.parametrize("row", catalog.ENCODERS.values(), ids=catalog.ENCODERS)
def test_a_row_is_planned_as_transformers_builds_it(row: catalog.Encoder) -> None:
    kind = {"BertModel": "bert", "DebertaModel": "deberta"}[row.architecture]
    planned = plan.of_row(row)
    network.require(network.specs(build({**row.config, "model_type": kind})), planned.specs)
    assert set(planned.groups.values()) == {"embeddings", "attention", "mlp", "norms"}
    assert set(planned.ledger) <= set(plan.GROUPS)


def test_minilm_by_hand() -> None:
    """6 layers of 384, six times as wide in the middle as a head is long; 30,522 words, 512 places, 2 kinds."""
    layer = 4 * (384 * 384 + 384) + 384 * 1536 + 1536 + 1536 * 384 + 384 + 4 * 384
    tables = (30_522 + 512 + 2) * 384 + 2 * 384
    assert plan.of_row(catalog.MINILM).parameters == 6 * layer + tables == 22_565_376
    # The publisher's file has the pooler besides, which is left out.
    assert 22_565_376 + 384 * 384 + 384 == 22_713_216


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({**BERT, "position_embedding_type": "relative_key"}, "positions other than absolute ones are not known"),
        ({**BERT, "is_decoder": True}, "a decoder of this kind is not known"),
        ({**BERT, "num_attention_heads": 5}, "24 numbers cannot be shared by 5 heads"),
        ({**BERT, "hidden_size": None}, "hidden_size is None, not a whole number from 1 to 16,777,216"),
        ({**DEBERTA, "relative_attention": False}, "attention other than DeBERTa's relative one is not known"),
        ({**DEBERTA, "talking_head": True}, "attention other than DeBERTa's relative one is not known"),
        ({**DEBERTA, "embedding_size": 12}, "embeddings of another size than the layers' are not known"),
        ({**DEBERTA, "pos_att_type": "c2p|p2p"}, "pos_att_type holds other ways than c2p, p2c"),
        ({**DEBERTA, "pos_att_type": [["c2p"]]}, "pos_att_type is [['c2p']], no list of names"),
        ({**DEBERTA, "pos_att_type": 3}, "pos_att_type is 3, no list of names"),
        ({**DEBERTA, "type_vocab_size": -1}, "type_vocab_size is -1, not a whole number from 1 to 16,777,216"),
    ],
)
def test_what_is_not_known_is_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(Failure) as refused:
        plan.make("it", config, "float32", 32)
    assert refused.value.code == "model_unsupported"
    assert refused.value.message == f"it cannot be planned: {said}"


def test_an_encoder_in_4_bits_is_not_known() -> None:
    with pytest.raises(Failure, match="an encoder in 4 bits is not known"):
        plan.make("it", BERT, "float32", 4)


def test_the_working_memory_holds_what_the_largest_batch_takes() -> None:
    """Every tensor that is alive at the worst moment of a real pass, counted as it is made and let go."""
    configs: list[dict[str, Any]] = [
        BERT | {"hidden_size": 96, "num_attention_heads": 3},
        DEBERTA | {"pos_att_type": ["c2p", "p2c"]},
    ]
    for config in configs:
        told = AutoConfig.for_model(**config, max_position_embeddings=64)
        model = network.build(told, torch.float32, 32).to_empty(device="cpu")
        network.fill_constants(model, torch.device("cpu"))
        rows, tokens = 4, 64
        ids = torch.zeros(rows, tokens, dtype=torch.long)
        with torch.profiler.profile(profile_memory=True) as profile, torch.inference_mode():
            model(ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
        held = most = 0
        for event in profile.profiler.kineto_results.events():
            if event.name() == "[memory]":
                held += event.nbytes()
                most = max(most, held)
        planned = plan.make("it", told.to_dict() | {"architectures": config["architectures"]}, "float32", 32)
        assert rows * tokens * 4 * config["hidden_size"] < most <= planned.workspace(rows * tokens, tokens)
