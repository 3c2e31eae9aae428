"""A catalogue row made ready to answer: found in the store, loaded, its engine running, warmed up by a first answer."""

from pathlib import Path
from typing import Any

import torch

from models import catalog, checkup, manifest, network, plan, store
from models.engine.engine import Engine
from models.machine import Machine
from models.prompt import Prompts

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
    ) -> None:
        checkup.require(checkup.examine(model, models, here, kv_tokens))
        item = manifest.locate(model, models)
        kv_tokens = plan.of_item(model.name, item, model.dtype).budget(here, kv_tokens)
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
        self.prompts = Prompts(model, loaded.tokenizer, self.engine, stops)
        self.prompts.warm_up()

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
            "engine": {
                "path": self.engine.path,
                "waiting": self.engine.waiting,
                "running": self.engine.running,
                "queued_cost": self.engine.admission.queued,
                "expected_wait": round(self.engine.admission.wait, 1),
                "tokens": dict(self.engine.tokens),
                "kv_tokens": {"budget": cache.budget, **cache.tokens()},
                "kv_bytes_per_token": cache.bytes_per_token,
            },
        }


def best_products() -> str:
    """What this processor multiplies fastest without losing what the weights hold: NF4 has 16 values a block."""
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"


def stop_ids(loaded: store.Loaded) -> set[int]:
    """Tokens that end a turn: the config's and the tokenizer's."""
    told = loaded.network.config.eos_token_id
    ids = {told} if isinstance(told, int) else set(told or ())
    return ids | {loaded.tokenizer.eos_token_id}
