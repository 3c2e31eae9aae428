"""A catalogue row made ready to answer: found in the store, loaded, its engine running, warmed up by a first answer."""

import ctypes
import hashlib
import threading
import time
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from models import calibration, catalog, checkup, machine, manifest, network, plan, store
from models.bertscore import BERTScores
from models.chat import Chats
from models.decisions import Decisions
from models.embedding import Embeddings
from models.encoders import Encoders
from models.engine.engine import Engine
from models.machine import Machine
from models.prompt import TEMPLATE, Prompts
from models.question import compact
from models.receipt import Receipts, find_key
from models.vision import Vision

TRIM_SECONDS = 20.0
LIBRARIES = ("torch", "transformers", "bitsandbytes", "llguidance")
STEP_TOKENS = {"cuda": 2048, "cpu": 512}  # as long as an answer may wait while prompts are read


class Runtime:
    """The one owner of the model in this process."""

    def __init__(
        self,
        model: catalog.Model,
        models: Path,
        here: Machine,
        *,
        kv_tokens: int,
        step_tokens: int,
        queue_tokens: int,
        cpu_products: str,
        receipt_key: str = "",
        image_tokens: int = 1280,
        embedding_model: str = catalog.MINILM.name,
        bertscore_model: str = "",
        embed_batch: int = 32,
        max_concurrent: int = 64,
    ) -> None:
        checkup.require(checkup.examine(model, models, here, kv_tokens))
        self._here = here
        self.encoders = Encoders(models, here, rows=embed_batch, most=max_concurrent)
        self.embeddings = Embeddings(self.encoders, embedding_model)
        self.bertscores = BERTScores(self.encoders, bertscore_model)
        here = replace(here, free=here.free - self.encoders.room)  # the KV cache gets what is left
        item = manifest.locate(model, models)
        kv_tokens = plan.of_item(model.name, item, model.dtype, model.bits).budget(here.within(model.memory), kv_tokens)
        loaded = store.load(item, torch.device(here.device))
        stops = stop_ids(loaded)
        self._products = "" if here.device != "cpu" else cpu_products or best_products()
        if self._products == "bf16":
            network.multiply_in(loaded.network, torch.bfloat16)
        self.manifest, self.report = loaded.manifest, loaded.report
        self._network = loaded.network
        self.engine = Engine(
            loaded.network,
            stops,
            kv_tokens=kv_tokens,
            step_tokens=step_tokens or STEP_TOKENS[here.device],
            queue_tokens=queue_tokens,
        )
        self.engine.start()
        self._model = model
        self._made_with = made_with(model, loaded, item, self.engine, self._products, image_tokens)
        self._calibrations = models.parent / "calibrations"
        receipts = Receipts(find_key(receipt_key, models.parent), self._made_with)
        eyes = open_eyes(loaded, image_tokens) if model.sees else None
        self.prompts = Prompts(model, loaded.tokenizer, self.engine, stops, receipts, self._calibrations, eyes)
        self.prompts.warm_up()
        self._since = int(time.time())
        threading.Thread(target=self._trim, name="trim", daemon=True).start()
        self.chats = Chats(
            model,
            loaded.manifest.tag,
            fingerprint(self._made_with),
            self.prompts.template,
            self.prompts.grammars,
            self.engine,
            eyes,
        )
        self.decisions = Decisions(model, loaded.manifest.tag, loaded.tokenizer, self.engine, queue_tokens)

    def stop(self) -> None:
        self.engine.stop()
        self.encoders.stop()

    def _trim(self) -> None:
        """Give back what glibc keeps of freed memory: 50 questions about labels left some 35 MB there, without end."""
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        while trim is not None and self.engine.alive:
            time.sleep(TRIM_SECONDS)
            trim(0)

    def served(self) -> list[tuple[str, str, int]]:
        """Names under which something is served: its own, its tag, and since when, in Unix time."""
        encoders = [(each["name"], each["tag"], self._since) for each in self.encoders.detail()]
        return [(self._model.name, self.manifest.tag, self._since), *encoders]

    def info(self) -> dict[str, Any]:
        """What is served, what answers are made with, and the calibrations in force; Failure where one is broken."""
        active = calibration.find_all(self._calibrations, self.manifest.tag)
        return {
            "model": self._model.name,
            "tag": self.manifest.tag,
            "source": self.manifest.source,
            "bits": self.manifest.bits,
            "ledger": self.manifest.ledger,
            "card": self._model.card,
            "context_length": self._model.context_length,
            "sees": self._model.sees,
            "made_with": self._made_with,
            "encoders": self.encoders.detail(),
            "device": self._describe_device(),
            "calibrations": [{"id": each.id, **asdict(each)} for each in active],
        }

    def _describe_device(self) -> dict[str, Any]:
        """What computes, and its memory now, in bytes; `capability` and `driver` are a card's."""
        free, total = memory(self.engine.device)
        return {
            "kind": self._here.device,
            "name": self._here.name,
            "capability": ".".join(map(str, self._here.capability)) if self._here.device == "cuda" else None,
            "driver": self._here.driver or None,
            "memory": {"free": free, "total": total, "set_aside_for_encoders": self.encoders.room},
        }

    def queue(self) -> dict[str, Any]:
        """Figures for /status: who waits, who is computed, and how long a new one would wait, in seconds."""
        return {
            "waiting": self.engine.waiting,
            "running": self.engine.running,
            "queued_cost": self.engine.admission.queued,
            "expected_wait": round(self.engine.admission.wait, 1),
        }

    def detail(self) -> dict[str, Any]:
        """Figures for /health: what is loaded, proven in bytes, and what the engine is doing."""
        cache = self.engine.cache
        return {
            "model": self.manifest.tag,
            "bits": self.manifest.bits,
            "weights": {
                "ledger": self.manifest.ledger,  # the plan's, as loading has proven
                "planned_bytes": self.manifest.resident_bytes,
                "resident_bytes": network.resident_bytes(self._network),
                "quantised_on": self.manifest.quantised_on,
                "loading": str(self.report),
            },
            "cpu_products": self._products,
            "device": str(self.engine.device),
            "encoders": self.encoders.detail(),
            "engine": {
                "path": self.engine.forward.name,
                **self.queue(),
                "tokens": dict(self.engine.tokens),
                "kv_tokens": {"budget": cache.budget, **cache.tokens()},
                "kv_bytes_per_token": cache.bytes_per_token,
            },
        }


def made_with(
    model: catalog.Model, loaded: store.Loaded, item: Path, engine: Engine, products: str, image_tokens: int
) -> dict[str, Any]:
    """What every answer of this process is made with, for its receipt."""
    template = f"{TEMPLATE}\n{loaded.tokenizer.chat_template}"
    return {
        "model": loaded.manifest.tag,
        "weights": hashlib.sha256((item / manifest.FILE).read_bytes()).hexdigest(),
        "template": hashlib.sha256(template.encode()).hexdigest(),
        "computed": f"{engine.forward.name} on {engine.device}{products and f', products in {products}'}",
        "context": min(model.context_length, engine.cache.budget),  # where documents are split
        **({"image_tokens": image_tokens} if model.sees else {}),
        "versions": {name: version(name) for name in LIBRARIES + ("pillow",) * model.sees},
    }


def fingerprint(made_with: dict[str, Any]) -> str:
    """What answers are made with, in short: where it differs, the same seed may draw another answer."""
    return f"fp_{hashlib.sha256(compact(made_with).encode()).hexdigest()[:12]}"


def open_eyes(loaded: store.Loaded, tokens: int) -> Vision:
    """How the model is shown images, at most so many tokens each."""
    described = loaded.network.config.vision_config
    return Vision(described.patch_size * described.spatial_merge_size, tokens)


def memory(device: torch.device) -> tuple[int, int]:
    """Bytes that are free there, of all."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    here = machine.host()
    return here.free, here.total


def best_products() -> str:
    """What this processor multiplies fastest without losing what the weights hold: NF4 has 16 values a block."""
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"


def stop_ids(loaded: store.Loaded) -> set[int]:
    """Tokens that end a turn: the config's and the tokenizer's."""
    told = loaded.network.config.get_text_config().eos_token_id
    ids = {told} if isinstance(told, int) else set(told or ())
    return ids | {loaded.tokenizer.eos_token_id}
