"""Every environment variable of the service, read once. Nothing else in the project reads the environment.

A value that cannot be used stops the process at its start and says which variable, what was found and what is allowed.
"""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar


class SettingError(ValueError):
    """A variable holds something that cannot be used; the message is for the operator."""


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(text)

    return parse


def _flag(text: str) -> bool:
    if text not in ("0", "1", "true", "false"):
        raise ValueError("one of 0, 1, true, false")
    return text in ("1", "true")


def _device(text: str) -> str:
    if text not in ("cpu", "cuda"):
        raise ValueError("one of cpu, cuda")
    return text


def _products(text: str) -> str:
    if text not in ("fp32", "bf16"):
        raise ValueError("one of fp32, bf16")
    return text


def _mode(text: str) -> str:
    if text not in ("http", "queue"):
        raise ValueError("one of http, queue")
    return text


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _text(text: str) -> str:
    return text.strip()


def _variable(name: str, default: Any, parse: Callable[[str], Any], about: str) -> Any:
    return field(default=default, metadata={"name": name, "parse": parse, "about": about})


@dataclass(frozen=True)
class Settings:
    """What an operator may set; the field metadata is the README's table."""

    model: str = _variable("ZOPILOT_MODEL", "", _text, "catalogue name; empty: Mixtral with a card, SmolLM2 without")
    device: str = _variable("TORCH_DEVICE", "", _device, "`cpu` or `cuda`; empty: the card where there is one")
    api_keys: tuple[str, ...] = _variable(
        "ZOPILOT_GPU_API_KEY", (), _list, "comma-separated keys; empty: no key is asked for"
    )
    allowed_origins: tuple[str, ...] = _variable(
        "ALLOWED_ORIGINS", (), _list, "origins that browsers may call from, or `*`"
    )
    health_public: bool = _variable("HEALTH_CHECK_PUBLIC", True, _flag, "0: `/health` asks for a key as well")
    hub_token: str = _variable("HUGGING_FACE_TOKEN", "", _text, "used by the import for gated repositories")
    max_body: int = _variable("ZOPILOT_MAX_BODY", 8 << 20, _whole(1024, 1 << 30), "largest request body in bytes")
    queue_tokens: int = _variable(
        "ZOPILOT_QUEUE_TOKENS",
        500_000,
        _whole(1, 1_000_000_000),
        "work that may wait, in prompt tokens (one of an answer counts 8); more gets 429",
    )
    kv_tokens: int = _variable(
        "ZOPILOT_KV_TOKENS", 0, _whole(0, 10_000_000), "tokens in flight; 0: what fits (without a card at most 32,768)"
    )
    step_tokens: int = _variable(
        "ZOPILOT_STEP_TOKENS", 0, _whole(0, 4096), "tokens in one step of the engine; 0: 512, on a card 2,048"
    )
    cpu_products: str = _variable(
        "ZOPILOT_CPU_PRODUCTS", "", _products, "`fp32` or `bf16` on a CPU; empty: bf16 where it has that"
    )
    receipt_key: str = _variable(
        "ZOPILOT_RECEIPT_KEY", "", _text, "secret for the hashes in receipts; empty: one is made beside the model store"
    )
    image_tokens: int = _variable(
        "ZOPILOT_IMAGE_TOKENS",
        1280,
        _whole(200, 16_384),
        "tokens that one image may take; larger ones shrink",
    )
    embedding_model: str = _variable(
        "ZOPILOT_EMBEDDING_MODEL", "all-minilm-l6-v2", _text, "encoder that `/embed` uses where none is named"
    )
    bertscore_model: str = _variable(
        "ZOPILOT_BERTSCORE_MODEL", "", _text, "the same for `/bertscore`; empty: DeBERTa if imported, else MiniLM"
    )
    max_texts: int = _variable(
        "GPU_MAX_BATCH_SIZE", 100, _whole(1, 10_000), "texts in a request to embed, pairs in one to score"
    )
    max_characters: int = _variable(
        "GPU_MAX_TEXT_LENGTH", 10_000, _whole(1, 1_000_000), "characters in each of these texts"
    )
    embed_batch: int = _variable("GPU_EMBED_BATCH", 32, _whole(1, 1024), "texts that an encoder reads at once at most")
    max_concurrent: int = _variable(
        "GPU_MAX_CONCURRENT", 64, _whole(1, 10_000), "such requests under way; more get a 503"
    )
    deadline_ms: int = _variable("ZOPILOT_DEADLINE_MS", 300_000, _whole(100, 3_600_000), "longest a prompt may take")


@dataclass(frozen=True)
class Container:
    """What the image's process 1 is told, by its operator and by RunPod; a table of its own in the README."""

    mode: str = _variable("ZOPILOT_MODE", "http", _mode, "`http`: answers on `PORT`; `queue`: takes RunPod's jobs")
    port: int = _variable("PORT", 3000, _whole(1, 65_535), "where it answers")
    host: str = _variable("ZOPILOT_HOST", "0.0.0.0", _text, "the address of `PORT` and `PORT_HEALTH`")
    health_port: int = _variable(
        "PORT_HEALTH", 0, _whole(0, 65_535), "where it answers `/ping` as well; 0: nowhere else"
    )
    grace: int = _variable(
        "ZOPILOT_GRACE", 30, _whole(0, 3600), "seconds that requests under way are given when it is told to end"
    )
    keep_hours: int = _variable("ZOPILOT_JOB_HOURS", 24, _whole(1, 720), "how long the answer of a job is kept")
    jobs: str = _variable("ZOPILOT_JOBS", "", _text, "folder of accepted jobs; empty: `jobs` beside the model store")
    endpoint: str = _variable("RUNPOD_ENDPOINT_ID", "", _text, "set by RunPod on a worker")
    pod: str = _variable("RUNPOD_POD_ID", "", _text, "set by RunPod on a pod and on a worker")
    take_url: str = _variable("RUNPOD_WEBHOOK_GET_JOB", "", _text, "set by RunPod on a worker that takes jobs")


@dataclass(frozen=True)
class Operator:
    """What scripts/deploy is told where it runs: keys, which no command line should show."""

    runpod_key: str = _variable("RUNPOD_API_KEY", "", _text, "key of your RunPod account")
    registry_user: str = _variable(
        "ZOPILOT_REGISTRY_USER", "", _text, "who may pull a private image; with its password"
    )
    registry_password: str = _variable("ZOPILOT_REGISTRY_PASSWORD", "", _text, "kept by RunPod, never shown again")


Form = TypeVar("Form", Settings, Container, Operator)


def read(environ: Mapping[str, str] | None = None, form: type[Form] = Settings) -> Form:  # type: ignore[assignment]
    """The settings found in `environ` (default: the process's own); raises SettingError."""
    environ = os.environ if environ is None else environ
    found: dict[str, Any] = {}
    for each in fields(form):
        name = each.metadata["name"]
        text = environ.get(name, "").strip()
        if not text:
            continue
        try:
            found[each.name] = each.metadata["parse"](text)
        except ValueError as allowed:
            # A key list never fails to parse, so no secret can be in this message.
            raise SettingError(f"{name} is {text!r}; allowed: {allowed}") from None
    return form(**found)


def store_path() -> Path:
    """The Bento model store: `$BENTOML_HOME/models`, as BentoML itself finds it."""
    home = os.environ.get("BENTOML_HOME") or Path.home() / "bentoml"
    # What belongs beside it lies where it is, not where a link to it is.
    return (Path(home) / "models").resolve()


def visible_cards() -> str:
    """Which cards CUDA is to see, in CUDA's own words; empty: all."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "")


def harden_process() -> None:
    """What must hold before BentoML or a model library is used in a serving process.

    One process owns the model. With BENTOML_CONTAINERIZED the supervisor ends when it dies instead of starting
    it again for ever, so a failed load or a poisoned card is seen by whoever started the service.
    torch's threads spin while they wait for each other; on cores that others use as well they then wait for a thread
    that has no core, and an answer took 4-7 times as long. Spinning less costs a fifth where the cores are free.
    oneDNN keeps what it has made for the shapes of products, and torch once more: 1,024 of each by their own choice,
    some 300 MB that grow for as long as steps of new lengths come. A quarter is enough.
    Offline: with AVX512-BF16 importing bitsandbytes would otherwise ask the hub for a kernel.
    """
    # uvicorn takes both wherever they are found: httptools has no bound on headers, and one event loop is enough.
    sys.modules.update({"httptools": None, "uvloop": None})  # type: ignore[dict-item]
    os.environ.setdefault("BENTOML_CONTAINERIZED", "true")
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "256")
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # the driver's own order, so that both number the cards alike
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
