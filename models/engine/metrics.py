"""What the engine does, in Prometheus' terms. No text, no prompt's own figures, and labels of a few known values only.

BentoML serves them on /metrics, where it gathers the files of several processes.
"""

from collections.abc import Mapping

from prometheus_client import Counter, Gauge, Histogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOKENS_OF_A_STEP = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)

TOKENS = Counter(
    "zopilot_tokens",
    "tokens by what became of them: prompt and answer went through the model, reused came from the cache,"
    " forced by a grammar, drafted and of these accepted",
    ["kind"],
)
STEP_TOKENS = Histogram("zopilot_step_tokens", "tokens in one step", buckets=TOKENS_OF_A_STEP)
STEP_SECONDS = Histogram("zopilot_step_seconds", "time of one step", buckets=SECONDS)
WAIT_SECONDS = Histogram("zopilot_wait_seconds", "from submission to the first step", buckets=SECONDS)
FIRST_SECONDS = Histogram("zopilot_first_token_seconds", "from submission to the first token", buckets=SECONDS)
PREEMPTED = Counter("zopilot_preempted_rows", "rows that were put back to make room for earlier ones")
ROWS = Gauge("zopilot_rows", "sequences by state", ["state"], multiprocess_mode="livesum")
QUEUE_COST = Gauge("zopilot_queue_cost", "work that waits, in prompt tokens", multiprocess_mode="livesum")
KV_TOKENS = Gauge("zopilot_kv_tokens", "the KV cache by use, in tokens", ["use"], multiprocess_mode="livesum")


def count(kind: str, tokens: int) -> None:
    TOKENS.labels(kind).inc(tokens)


def note_first(waited: float, seconds: float) -> None:
    WAIT_SECONDS.observe(waited)
    FIRST_SECONDS.observe(seconds)


def note_step(tokens: int, seconds: float) -> None:
    STEP_TOKENS.observe(tokens)
    STEP_SECONDS.observe(seconds)


def note_state(waiting: int, running: int, cost: int, kv_tokens: Mapping[str, int]) -> None:
    ROWS.labels("waiting").set(waiting)
    ROWS.labels("running").set(running)
    QUEUE_COST.set(cost)
    for use, tokens in kv_tokens.items():
        KV_TOKENS.labels(use).set(tokens)
