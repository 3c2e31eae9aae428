"""The BentoML service: one method a route, and the life of the process. The product on one screen.

No torch is imported here: this module is also imported by the supervisor and by `bentoml build`.
"""

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import settings

settings.harden_process()

import bentoml  # noqa: E402 - the environment comes first
from _bentoml_impl.serde import ALL_SERDE  # noqa: E402
from starlette.middleware.cors import CORSMiddleware  # noqa: E402

from models import checkup  # noqa: E402
from models.failure import Failure  # noqa: E402
from serving import bertscore, chat, completions, decisions, embeddings, origins, traffic  # noqa: E402
from serving.arrival import Arrival, prepare  # noqa: E402
from serving.errors import failure  # noqa: E402
from serving.gate import Gate, Keys  # noqa: E402
from serving.limits import Limits  # noqa: E402
from serving.protocol import Prompt, Reply  # noqa: E402
from serving.status import Served, Status  # noqa: E402

# Unpickling a body is running it. BentoML uses this one only between services, and there is one service.
ALL_SERDE.pop("application/vnd.bentoml+pickle", None)
traffic.install()

try:
    SETTINGS = settings.read()
except settings.SettingError as error:
    sys.exit(f"zopilot-gpu: {error}")

STATUS = Status()
log = logging.getLogger("zopilot.service")
LIMITS = Limits(SETTINGS.max_texts, SETTINGS.max_characters)
MAX_BATCH = 64
MAX_OPEN = 512  # requests whose body is being read or whose answer is waited for


@bentoml.service(
    name="zopilot-gpu",
    workers=1,
    resources={"gpu": 1, "gpu_type": "nvidia-rtx-5090", "memory": "48Gi"},
    # Beyond our own deadline, whose refusal says more. No max_concurrency: its 429 has no Retry-After, the gate's has.
    traffic={"timeout": SETTINGS.deadline_ms / 1000 + 60},
    logging={"access": {"enabled": False}},
)
class ZopilotGPU:
    """Documents in, whole answers out."""

    def __init__(self) -> None:
        self.runtime: Any = None
        threading.Thread(target=self._load, name="load", daemon=True).start()

    @bentoml.on_deployment
    @staticmethod
    def check() -> None:
        """Once, in the supervisor, before the port is bound: what can be refused without loading is refused here."""
        try:
            model, here = checkup.choose(SETTINGS.model, SETTINGS.device, settings.visible_cards())
            store = settings.store_path()
            checkup.require(
                [*checkup.judge_store(model, store), checkup.judge_memory(model, store, here, SETTINGS.kv_tokens)]
            )
        except Failure as refused:
            sys.exit(f"zopilot-gpu: cannot serve: {refused.message}")

    def _load(self) -> None:
        """In the background, so that the service can say that it is loading; then ends the process with the engine."""
        try:
            from models.runtime import Runtime  # torch comes in here

            model, here = checkup.choose(SETTINGS.model, SETTINGS.device, settings.visible_cards())
            runtime = Runtime(
                model,
                settings.store_path(),
                here,
                kv_tokens=SETTINGS.kv_tokens,
                step_tokens=SETTINGS.step_tokens,
                queue_tokens=SETTINGS.queue_tokens,
                cpu_products=SETTINGS.cpu_products,
                receipt_key=SETTINGS.receipt_key,
                image_tokens=SETTINGS.image_tokens,
                embedding_model=SETTINGS.embedding_model,
                bertscore_model=SETTINGS.bertscore_model,
                embed_batch=SETTINGS.embed_batch,
                max_concurrent=SETTINGS.max_concurrent,
            )
        except BaseException as error:
            reason = error.message if isinstance(error, Failure) else f"{type(error).__name__}: {error}"
            print(f"zopilot-gpu: cannot serve: {reason}", file=sys.stderr, flush=True)
            STATUS.fail()
            os._exit(1)
        self.runtime = runtime
        print(f"zopilot-gpu: {runtime.report}", flush=True)
        STATUS.become_ready(runtime.detail, lambda: runtime.engine.alive, runtime.info, runtime.queue, self._list)
        if not runtime.engine.wait():
            print("zopilot-gpu: the engine has stopped by a fault; the process ends", file=sys.stderr, flush=True)
            STATUS.fail()
            time.sleep(1)  # for those who waited to be told
            os._exit(1)

    def _list(self) -> list[Served]:
        """What can be asked for by name under /v1."""
        return [Served(*each) for each in self.runtime.served()]

    @bentoml.on_shutdown
    def stop(self) -> None:
        if self.runtime is not None:
            self.runtime.stop()

    def __is_ready__(self) -> bool:
        return STATUS.ready

    def __is_alive__(self) -> bool:
        return STATUS.alive

    @bentoml.api(
        batchable=True,
        max_batch_size=MAX_BATCH,
        max_latency_ms=3_600_000,  # BentoML's shedding answers a bare 503; our deadline and queue bound say more
        input_spec=Prompt,
        output_spec=Reply,
    )
    def prompt(self, arrivals: list[Arrival]) -> list[Arrival]:
        """Ask about a document. Admits what BentoML has gathered and gives each its ticket; nobody waits here."""
        for arrival in arrivals:
            self._admit(arrival, self.runtime.prompts.ask)
        return arrivals

    @bentoml.api(route="/v1/decisions", input_spec=decisions.Questions, output_spec=decisions.Answers)
    async def decide(self, arrival: Arrival) -> Arrival:
        """Typed questions about one input. Admits them all, in a thread: they may be many."""
        await asyncio.to_thread(self._admit, arrival, self.runtime.decisions.ask)
        return arrival

    # Two methods for one work: BentoML has one batcher a route.
    @bentoml.api(
        batchable=True,
        max_batch_size=MAX_BATCH,
        max_latency_ms=3_600_000,
        input_spec=embeddings.Texts,
        output_spec=embeddings.Embedded,
    )
    async def embed(self, arrivals: list[Arrival]) -> list[Arrival]:
        """Texts as vectors. Admits what BentoML has gathered, has it computed together, and does not wait for it."""
        return await asyncio.to_thread(self._embed, arrivals)

    @bentoml.api(
        route="/v1/embeddings",
        batchable=True,
        max_batch_size=MAX_BATCH,
        max_latency_ms=3_600_000,
        input_spec=embeddings.Inputs,
        output_spec=embeddings.Listed,
    )
    async def embed_list(self, arrivals: list[Arrival]) -> list[Arrival]:
        """The same as the public API has it."""
        return await asyncio.to_thread(self._embed, arrivals)

    def _embed(self, arrivals: list[Arrival]) -> list[Arrival]:
        for arrival in arrivals:
            self._admit(arrival, self.runtime.embeddings.ask)
        self.runtime.embeddings.begin()
        return arrivals

    @bentoml.api(route="/bertscore", input_spec=bertscore.Pairs, output_spec=bertscore.Scored)
    async def score(self, arrival: Arrival) -> Arrival:
        """How much of a candidate's meaning its references have, and the other way round."""
        await asyncio.to_thread(self._admit, arrival, self.runtime.bertscores.ask)
        return arrival

    @bentoml.api(input_spec=bertscore.Warmup, output_spec=bertscore.Warm)
    async def warmup(self, arrival: Arrival) -> Arrival:
        """Load encoders before they are needed."""
        await asyncio.to_thread(self._admit, arrival, self.runtime.encoders.ask)
        return arrival

    @bentoml.api(route="/v1/chat/completions", input_spec=chat.Request, output_spec=chat.Completion)
    async def chat(self, arrival: Arrival) -> Arrival:
        """The assistant's next turn, at once or as a stream; images are read first."""
        chats, pictures = self.runtime.chats, []
        if arrival.asked is not None:
            pictures = await prepare(arrival, chats.look(arrival.asked, self._deadline(arrival)))
        await asyncio.to_thread(self._admit, arrival, partial(chats.talk, pictures=pictures))
        return arrival

    @bentoml.api(route="/v1/completions", input_spec=completions.Request, output_spec=completions.Completion)
    async def complete(self, arrival: Arrival) -> Arrival:
        """What follows a text, at once or as a stream."""
        await asyncio.to_thread(self._admit, arrival, self.runtime.chats.go_on)
        return arrival

    def _deadline(self, arrival: Arrival) -> float:
        """On the monotonic clock."""
        wanted = getattr(arrival.asked, "deadline_ms", None) or SETTINGS.deadline_ms
        return arrival.caller.since + min(wanted, SETTINGS.deadline_ms) / 1000

    def _admit(self, arrival: Arrival, ask: Callable[[Any, float], Any]) -> None:
        """A refusal is a value: it is this arrival's alone."""
        if arrival.failure is not None:
            return
        try:
            if check := getattr(arrival.asked, "check", None):
                check(LIMITS)
            ticket = ask(arrival.asked, self._deadline(arrival))
        except Failure as refused:
            arrival.failure = refused
        except Exception as error:
            log.error("a prompt could not be admitted: %s", type(error).__name__)
            arrival.failure = failure("internal_error")
        else:
            arrival.ticket = ticket
            arrival.caller.hold(ticket)


add_middleware: Any = ZopilotGPU.add_asgi_middleware  # type: ignore[attr-defined]
if SETTINGS.allowed_origins:
    add_middleware(CORSMiddleware, **origins.allow(SETTINGS.allowed_origins))
add_middleware(
    Gate,
    status=STATUS,
    keys=Keys(SETTINGS.api_keys),
    health_public=SETTINGS.health_public,
    max_body=SETTINGS.max_body,
    max_open=MAX_OPEN,
)
