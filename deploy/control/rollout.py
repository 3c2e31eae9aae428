"""Bring a deployment up: by name, so that it can be killed anywhere and be run again, and nothing is made twice.

What costs money is told before it is asked for, with the command that removes it.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from deploy.control import cards, cost
from deploy.control.bodies import Endpoint, GpuType, Pod, Volume
from deploy.control.cards import Offer
from deploy.control.order import Order, Refused, volume_name
from deploy.control.probe import Probe
from deploy.control.problem import ApiError, Forbidden, NoCapacity
from deploy.control.runpod import ENDPOINTS, PODS, REGISTRIES, VOLUMES, Client
from deploy.control.standing import Standing, removal, same, survey

LOOK_SECONDS = 5.0
TWICE = "RunPod has made one of these twice"


class Fallen(Exception):
    """It was made and does not answer."""


@dataclass(frozen=True)
class Running:
    """What answers, where, and the dollars that an hour of one worker costs (0: nobody knows)."""

    thing: Pod | Endpoint
    url: str
    price: float


@dataclass(frozen=True)
class Rollout:
    """One order on its way; whoever listens to the client is told every step. `budget` dollars, 0: none, are the most
    that a pod may cost before it answers."""

    client: Client
    order: Order
    probe: Probe
    budget: float = 0

    def make(self) -> Pod | Endpoint:
        """Whatever is not there yet beside the weights. Raises Refused, ApiError or Fallen."""
        order = self.order
        order.check()
        found = survey(self.client, order.name)
        if thing := found.single(order.mode):
            same(order, thing)
            self.client.say(f"{thing.name} ({thing.id}) is there already")
            return thing
        thing = self._make(found)
        # Where an answer was lost and its list is late, a thing may have been asked for twice.
        if len(survey(self.client, order.name).things(order.mode)) > 1:
            raise Fallen(TWICE)
        return thing

    def answer(self, thing: Pod | Endpoint, wait_seconds: float) -> Running:
        """Returns when it answers. Raises ApiError or Fallen."""
        if isinstance(thing, Pod):
            return self._await_pod(thing, wait_seconds)
        return self._await_endpoint(thing, wait_seconds)

    def volume(self) -> Volume:
        """The volume for the weights: found, or made where the cheapest card that holds the model is free. There may
        be one in each data center that is asked for."""
        order = self.order
        if found := survey(self.client, order.name).volumes_in(order.center):
            return found[0]
        offers = cards.offers(order.row, self._gpus(), order.serverless, order.cards)
        kept = {each.id for each in self.client.data_centers() if each.network_volume_types}
        fit = kept & ({order.center} if order.center else cards.S3_CENTERS)
        center = next((center for offer in offers for center in offer.centers if center in fit), "")
        if not center:
            raise NoCapacity(0, f"no card that holds {order.row.name} is free beside a volume{self._among}")
        body = order.volume_body(center)
        self.client.say(f"making the network volume {body.name}, {body.size} GB in {center}, paid for until removed:")
        self.client.say(f"  {removal(order.name)} --volume")
        self.client.say(f"it is empty: nothing answers before scripts/deploy upload --name {order.name}")
        made = self.client.create(VOLUMES, body, body.name)
        if len([each for each in survey(self.client, order.name).volumes if each.data_center == center]) > 1:
            raise Fallen(TWICE)
        return made

    def _gpus(self) -> list[GpuType]:
        return self.client.gpus("SERVERLESS" if self.order.serverless else "POD", self.order.cuda)

    def _make(self, found: Standing) -> Pod | Endpoint:
        """Try one candidate after the other while RunPod has no card free."""
        order, gpus = self.order, self._gpus()
        offers = cards.offers(order.row, gpus, order.serverless, order.cards)
        if not offers:
            raise Refused(f"RunPod's catalogue has no card that holds {order.row.name}{self._among}")
        volumes, registry = self._volumes(found), self._registry(found)
        why: ApiError = NoCapacity(0, f"no card that holds {order.row.name} is free where it could stand{self._among}")
        for offer, centers in self._candidates(offers, volumes):
            where = ", ".join(centers) or "any data center"
            here = [volume.id for volume in volumes if volume.data_center in centers]
            self.client.say(f"making {order.thing} on {offer.gpu.name} in {where}, ${offer.price:.2f} an hour each:")
            self.client.say(f"  {removal(order.name, order.mode)}")
            try:
                if not order.serverless:
                    pod = order.pod_body(offer, centers[0], (*here, "")[0], registry)
                    return self.client.create(PODS, pod, order.thing)
                excluded = cards.excluded(offer.gpu.pool or "", offers, gpus)
                endpoint = order.endpoint_body(offer, excluded, centers, here, registry)
                return self.client.create(ENDPOINTS, endpoint, order.thing)
            except (NoCapacity, Forbidden) as error:
                why = type(error)(error.status, f"{offer.gpu.name} in {where}: {error}")
                self.client.say(str(why))
        raise why

    @property
    def _among(self) -> str:
        wanted = [f"--card {card}" for card in self.order.cards]
        wanted += [f"--data-center {self.order.center}"] if self.order.center else []
        return f" ({', '.join(wanted)})" if wanted else ""

    def _volumes(self, found: Standing) -> list[Volume]:
        """Those with the weights, where it may stand; none if they are in the image. Without weights nothing would
        ever answer, and be paid for."""
        order = self.order
        if order.baked:
            return []
        fit = found.volumes_in(order.center)
        if not fit:
            where = f" --data-center {order.center}" if order.center else ""
            named = f"--name {order.name} --model {order.row.name}{where}"
            raise Refused(
                f"there is no network volume {volume_name(order.name)} where it may stand: scripts/deploy volume "
                f"{named}, scripts/deploy upload {named}, then up; or --baked, if the image has the weights"
            )
        for volume in fit:
            if volume.size * 1e9 < order.weights:
                raise Refused(f"{volume.name} ({volume.id}) has {volume.size} GB, too few for {order.row.name}")
        return fit

    def _candidates(self, offers: Sequence[Offer], volumes: Sequence[Volume]) -> Iterator[tuple[Offer, list[str]]]:
        """Cards and data centers, the cheapest first; where the weights are if they are on a volume. The catalogue
        says what is free now and promises nothing, so where there is no choice of place it only orders them."""
        asked, held = self.order.center, [volume.data_center for volume in volumes]
        if volumes:  # an endpoint spans all of them
            spans = [held] if self.order.serverless else [[center] for center in held]
            places = [(offer, span) for offer in offers for span in spans]
            yield from sorted(places, key=lambda place: not {*place[1]} & {*place[0].centers})
        elif self.order.serverless:
            yield from ((offer, [asked] if asked else []) for offer in offers)
        else:
            yield from ((offer, [each]) for offer in offers for each in offer.centers if asked in ("", each))

    def _registry(self, found: Standing) -> str | None:
        """The id of the credential, made if there is none; None for a public image."""
        if found.registries:
            return found.registries[0].id
        if not all(self.order.registry):
            return None
        body = self.order.registry_body()
        self.client.say(f"making the registry credential {body.name}; it costs nothing")
        return self.client.create(REGISTRIES, body, body.name).id

    def _await_pod(self, pod: Pod, wait_seconds: float) -> Running:
        if pod.status == "EXITED":
            self.client.say(f"starting {pod.name}, which was stopped; ${pod.cost:.2f} an hour from now on")
            try:
                self.client.act(pod.id, "start")
            except NoCapacity as error:
                again = removal(self.order.name, self.order.mode)
                raise Fallen(f"{error}; a stopped pod stays on its host: {again}, then up takes another") from None
        url = self.probe.pod_url(pod.id)

        def look() -> tuple[bool, str]:
            nonlocal pod
            pod = self.client.get(PODS, pod.id)
            if pod.status in ("EXITED", "ERROR", "TERMINATED"):
                raise Fallen(f"{pod.name} is {pod.status}; see: {self._logs}")
            return pod.status == "RUNNING" and self.probe.ready(url), f"{pod.name} is {pod.status} and not ready"

        if self.budget and pod.cost:
            wait_seconds = min(wait_seconds, cost.budget_seconds(self.budget, pod.cost))
        self._wait(look, wait_seconds)
        if self.probe.refuses(url, self.order.keys[0]):
            raise Fallen(f"{pod.name} answers, but not to ZOPILOT_GPU_API_KEY: it was started with another key")
        return Running(pod, url, pod.cost)

    def _await_endpoint(self, endpoint: Endpoint, wait_seconds: float) -> Running:
        """A balancer answers when a worker does; a queue when it takes jobs, and where one is to be kept, when it is
        up."""
        urls = endpoint.request_urls
        if urls is None:
            raise Fallen(f"RunPod does not say where {endpoint.name} is asked")
        balanced, least = self.order.mode == "lb", min(1, self.order.workers[0])

        def look() -> tuple[bool, str]:
            summary = self.client.workers(endpoint.id).summary
            up = summary.idle + summary.running
            told = f"{endpoint.name} does not answer: {up} of {summary.total} workers ready"
            told += f", {summary.throttled} waiting for a card" if summary.throttled else ""
            told += f", {summary.unhealthy} unhealthy (see: {self._logs})" if summary.unhealthy else ""
            if balanced:
                return self.probe.ready(urls.base or "", authorized=True), told
            return up >= least and self.probe.takes_jobs(urls.health), told

        self._wait(look, wait_seconds)
        prices = [gpu.price.serverless or 0 for gpu in self._gpus() if gpu.pool and gpu.pool in endpoint.pools]
        return Running(endpoint, (urls.base if balanced else urls.run_sync) or "", max(prices, default=0))

    @property
    def _logs(self) -> str:
        return f"scripts/deploy logs --name {self.order.name} --mode {self.order.mode}"

    def _wait(self, look: Callable[[], tuple[bool, str]], seconds: float) -> None:
        """Until `look` finds it ready; Fallen with what was told last after `seconds`."""
        end, before = time.monotonic() + seconds, ""
        while True:
            ready, told = look()
            if ready:
                return
            if time.monotonic() > end:
                raise Fallen(f"{told}, after {seconds / 60:.0f} minutes")
            if told != before:
                self.client.say(told)
            before = told
            self.client.sleep(LOOK_SECONDS)
