"""What a deployment costs and how fast it starts, in lines for an operator. Sends nothing."""

from collections.abc import Iterator, Mapping, Sequence

from deploy import limits
from deploy.control import cost
from deploy.control.cards import Offer
from deploy.control.order import Order
from deploy.control.rollout import Running
from deploy.control.standing import removal

UNMEASURED = "an assumption: measure yours with scripts/bench, give it as --rate"


def tell_needs(order: Order, cards: Mapping[str, int]) -> Iterator[str]:
    """What the model takes, wherever it stands; `cards` that hold it, and their tokens of KV cache."""
    size, start = order.volume_body("?").size, order.start
    yield f"{order.row.name}: {order.weights:,} bytes of weights; held by {', '.join(cards)}"
    yield f"network volume: {size} GB, ${cost.volume_month(size):.2f} a month, used or not"
    most = limits.WORKER_SECONDS
    late = f"; RunPod's balancer waits {most:.0f}, so --mode lb keeps a worker" if start.high > most else ""
    yield f"cold start: {start.low:.0f} to {start.high:.0f} seconds{late}"


def tell_offers(pods: Sequence[Offer], flex: Sequence[Offer], rate: float | None) -> Iterator[str]:
    """Each card that holds the model, as a pod and serverless; `rate` in documents a second, None: not measured."""
    yield f"documents a second: {f'{rate:g}' if rate else f'1, {UNMEASURED}'}"
    workers = {offer.gpu.id: offer for offer in flex}
    for pod in pods:
        yield f"{pod.gpu.id}: {pod.tokens:,} tokens of KV cache, {pod.rooms} documents at once"
        yield f"  pod         ${pod.price:.2f} an hour, {_thousand(pod.price, rate)}; {_stock(pod)}"
        if worker := workers.get(pod.gpu.id):
            told = f"${worker.price:.2f} an hour, {_thousand(worker.price, rate)}; {_stock(worker)}"
            yield f"  serverless  {told}; pool {worker.gpu.pool}"
        if worker and worker.price:
            hours = cost.break_even_hours(pod.price, worker.price)
            yield f"  a pod costs less from {hours:.1f} warm hours a day" if hours <= 24 else "  serverless costs less"


def tell_running(order: Order, running: Running, rate: float | None) -> Iterator[str]:
    """What `up` has come to."""
    yield f"{order.thing} answers: {running.url}"
    if order.mode == "queue" and not order.workers[0]:
        told = f"{order.start.low:.0f} to {order.start.high:.0f} seconds of cold start"
        yield f"no worker is up, and none is paid for; the first job waits for one: {told}"
    if running.price:
        told = f"at {rate:g} documents a second" if rate else f"at 1 document a second, {UNMEASURED}"
        yield f"${running.price:.2f} an hour each, {_thousand(running.price, rate)} {told}"
    yield f"it goes on until: {removal(order.name, order.mode)}"


def _thousand(price: float, rate: float | None) -> str:
    return f"${cost.per_thousand(price, rate or 1):.3f} per 1,000 documents"


def _stock(offer: Offer) -> str:
    return f"free in {', '.join(offer.centers)}" if offer.centers else "none free now"
