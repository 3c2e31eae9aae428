"""Stop a pod that has nothing to do, or whose budget is used up. It watches from outside, for as long as it runs.

It fails towards stopping: no answer counts as no work, an unknown price as the highest it has seen, and a stop that is
refused is asked for until the pod stands still. What it cannot do is outlive its own machine.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from deploy.control import cost
from deploy.control.bodies import Pod
from deploy.control.probe import Probe
from deploy.control.problem import ApiError, NotFound
from deploy.control.runpod import PODS, Client

LOOK_SECONDS = 30.0
OVER = ("EXITED", "TERMINATED")


@dataclass
class Watch:
    """Of one pod. `idle` seconds without work, as seen from here, and `budget` dollars end it, 0: neither; `price` is
    what an hour costs at least. `clock` tells seconds of Unix time."""

    client: Client
    probe: Probe
    key: str
    idle: float
    budget: float
    price: float
    clock: Callable[[], float] = time.time
    _worked: float = 0.0
    _ended: frozenset[str] = field(default_factory=frozenset)

    def run(self, pod: Pod) -> str:
        """Until it stands still; why it does."""
        began = _began(pod, self.clock())
        self._worked = self.clock()  # what came before nobody has seen: a long start is no idleness
        while True:
            try:
                pod = self.client.get(PODS, pod.id)
                if pod.status in OVER:
                    return f"{pod.name} is {pod.status}"
                began = _began(pod, began)
            except NotFound:
                return f"{pod.name} is gone"
            except ApiError as error:
                self.client.say(f"{error}; it is reckoned with what is known")
            self.price = max(self.price, pod.cost)
            if why := self._due(pod, began):
                self.client.say(f"stopping {pod.name}: {why}")
                stop(self.client, pod, self.price)
                return why
            self.client.sleep(LOOK_SECONDS)

    def _due(self, pod: Pod, began: float) -> str:
        """Why it is to be stopped now, two looks before it would be too late; "" where it is not."""
        now = self.clock()
        if self._busy(self.probe.status(self.probe.pod_url(pod.id), self.key)):
            self._worked = now
        spent = cost.of_seconds(self.price, max(0, now - began))
        if self.budget and cost.of_seconds(self.price, max(0, now + 2 * LOOK_SECONDS - began)) >= self.budget:
            return f"${spent:.2f} of ${self.budget:.2f} are spent"
        quiet = now - max(self._worked, began)
        return f"no work for {quiet / 60:.0f} minutes" if self.idle and quiet >= self.idle else ""

    def _busy(self, status: dict[str, Any] | None) -> bool:
        """Whether anything is under way, waits, or has ended since the last look."""
        if status is None:
            return False
        queue = status.get("queue", {})
        ended = frozenset(str(each.get("request_id")) for each in status.get("recent", []))
        fresh, self._ended = ended - self._ended, ended
        return bool(status.get("active") or queue.get("waiting") or queue.get("running") or fresh)


def stop(client: Client, pod: Pod, price: float) -> None:
    """Until RunPod says that it stands still; at `price` dollars an hour until then. One in error it does not stop, so
    that is removed."""
    while True:
        try:
            client.act(pod.id, "stop")
            status = client.get(PODS, pod.id).status
            if status in OVER:
                return
            if status == "ERROR":
                client.say(f"removing {pod.name}: it is in error, and such a pod cannot be stopped")
                client.delete(PODS, pod.id)
        except NotFound:
            return
        except ApiError as error:
            client.say(f"{pod.name} is NOT stopped yet and costs ${price:.2f} an hour: {error}")
        client.sleep(LOOK_SECONDS / 6)


def _began(pod: Pod, otherwise: float) -> float:
    """Unix time of its last start; `otherwise` where RunPod's words for it cannot be read."""
    try:
        return datetime.fromisoformat(pod.started_at or pod.created_at).timestamp()
    except ValueError:
        return otherwise
