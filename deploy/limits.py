"""What each place that the image runs in cuts off by itself, and the same refused by us before: early, typed, by name.

Source: RunPod's documentation of pods, load-balancing and queue endpoints, August 2026.
"""

from dataclasses import dataclass

from models.failure import Failure
from settings import Container, SettingError, Settings

MB = 1_000_000
RESERVE_SECONDS = 10.0  # on our side of a limit in time


@dataclass(frozen=True)
class Platform:
    """`body`, `answer`: the most bytes each way; `begin`, `whole`: seconds until a response begins, until it ends.
    `public`: whoever knows the address gets through. `sticky`: the next request reaches the same process."""

    name: str
    body: int | None = None
    answer: int | None = None
    begin: float | None = None
    whole: float | None = None
    public: bool = False
    sticky: bool = True


POD = Platform("the proxy of a RunPod pod", begin=100, public=True)
BALANCER = Platform("a RunPod load balancer", body=30 * MB, answer=30 * MB, whole=330, sticky=False)
QUEUE_BYTES = 10 * MB  # of /run; /runsync would take 20 MB
QUEUE = Platform("a RunPod queue", body=QUEUE_BYTES, answer=QUEUE_BYTES)
ELSEWHERE = Platform("this host")
# How long a RunPod load balancer lets a request wait for a worker.
WORKER_SECONDS = 120.0


def find(container: Container) -> Platform:
    """Where this container runs, by what RunPod has set."""
    if container.mode == "queue":
        return QUEUE
    if container.endpoint:
        return BALANCER
    return POD if container.pod else ELSEWHERE


def check(platform: Platform, settings: Settings) -> None:
    """Raises SettingError for what would be cut by the platform, or be open to everyone there."""
    if platform.body is not None and settings.max_body > platform.body:
        raise SettingError(
            f"ZOPILOT_MAX_BODY is {settings.max_body}; {platform.name} takes {platform.body} bytes at most"
        )
    most = None if platform.whole is None else int((platform.whole - RESERVE_SECONDS) * 1000)
    if most is not None and settings.deadline_ms > most:
        raise SettingError(
            f"ZOPILOT_DEADLINE_MS is {settings.deadline_ms}; {platform.name} ends a request after"
            f" {platform.whole:.0f} seconds, so at most {most}"
        )
    if platform.public and not settings.api_keys:
        raise SettingError(f"ZOPILOT_GPU_API_KEY is not set; {platform.name} lets everyone in who knows its address")


def check_answer(platform: Platform, size: int) -> None:
    """Raises Failure for an answer of `size` bytes that the platform would not pass on."""
    if platform.answer is not None and size > platform.answer:
        raise Failure(
            "answer_too_large",
            f"the answer has {size} bytes; {platform.name} takes {platform.answer} at most; ask for less at once",
        )
