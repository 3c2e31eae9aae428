"""What stands at RunPod of a deployment, by its name and its mark: nothing else is ever touched, or paid for unsaid."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from deploy.control import cost
from deploy.control.bodies import Endpoint, Pod, Registry, Volume
from deploy.control.order import MARK, SECRET, Order, Refused, registry_name, volume_name
from deploy.control.problem import ApiError
from deploy.control.runpod import ENDPOINTS, PODS, REGISTRIES, VOLUMES, Client, bare

MODES = ("queue", "pod", "lb")


@dataclass(frozen=True)
class Standing:
    """All that is called as the deployment calls its things; `strangers` are called so and were not made here."""

    name: str
    pods: list[Pod]
    endpoints: list[Endpoint]
    volumes: list[Volume]
    registries: list[Registry]
    strangers: list[Pod | Endpoint]

    def things(self, mode: str) -> list[Pod | Endpoint]:
        """The pods or endpoints of a mode; more than one is a fault that `up` names and `down` mends."""
        found: list[Pod | Endpoint] = [*self.pods, *self.endpoints]
        return [each for each in found if bare(each.name) == f"{self.name}-{mode}"]

    def single(self, mode: str) -> Pod | Endpoint | None:
        """The one of a mode; Refused where there are two, or it is a stranger."""
        for stranger in self.strangers:
            if bare(stranger.name) == f"{self.name}-{mode}":
                raise Refused(f"{stranger.name} ({stranger.id}) was not made by this command: choose another --name")
        found = self.things(mode)
        if len(found) > 1:
            ids = ", ".join(each.id for each in found)
            raise Refused(f"there are {len(found)} called {self.name}-{mode} ({ids}), and only one can be meant")
        return found[0] if found else None

    def volumes_in(self, center: str) -> list[Volume]:
        """Those in a data center, "": in all; Refused where one has two, for nobody knows which has the weights."""
        found = [volume for volume in self.volumes if center in ("", volume.data_center)]
        if len({volume.data_center for volume in found}) < len(found):
            raise Refused(f"one data center has two {volume_name(self.name)}, and only one can be meant")
        return found

    def tell(self) -> list[str]:
        """A line for each: what it is, what it costs, the command that removes it."""
        lines = []
        for mode in MODES:
            for each in self.things(mode):
                lines.append(f"{_tell(each)}; remove it: {removal(self.name, mode)}")
        for volume in self.volumes:
            month = f"${cost.volume_month(volume.size):.2f} a month, used or not"
            told = f"network volume {volume.name} ({volume.id}, {volume.data_center}, {volume.size} GB): {month}"
            lines.append(f"{told}; remove it and the weights on it: {removal(self.name)} --volume")
        for registry in self.registries:
            told = f"registry credential {registry.name} ({registry.id}): costs nothing"
            lines.append(f"{told}; remove it: {removal(self.name)}")
        return lines


def removal(name: str, mode: str = "") -> str:
    """The command that removes what `up` has made."""
    return f"scripts/deploy down --name {name}" + (f" --mode {mode}" if mode else "")


def survey(client: Client, name: str) -> Standing:
    """Ask RunPod for all of it."""
    called = {f"{name}-{mode}" for mode in MODES}
    pods = [pod for pod in client.fetch(PODS) if pod.name == f"{name}-pod"]
    endpoints = [each for each in client.fetch(ENDPOINTS) if bare(each.name) in called - {f"{name}-pod"}]
    found: list[Pod | Endpoint] = [*pods, *endpoints]
    strangers = [each for each in found if not _marked(each, name)]
    return Standing(
        name,
        [pod for pod in pods if _marked(pod, name)],
        [each for each in endpoints if _marked(each, name)],
        [each for each in client.fetch(VOLUMES) if each.name == volume_name(name)],
        [each for each in client.fetch(REGISTRIES) if each.name == registry_name(name)],
        strangers,
    )


def down(client: Client, name: str, modes: Sequence[str], volume: bool) -> Standing:
    """Remove what `up` made: the pods and endpoints of `modes`; with the last of them the registry credential, and
    the volume where that is said. What is left is returned."""
    found = survey(client, name)
    for each in found.strangers:
        if bare(each.name) in {f"{name}-{mode}" for mode in modes}:
            client.say(f"left alone: {each.name} ({each.id}) was not made by this command")
    for mode in modes:
        for each in found.things(mode):
            if isinstance(each, Pod):
                client.delete(PODS, each.id)
            else:
                client.delete(ENDPOINTS, each.id)
            client.say(f"removed {each.name} ({each.id})")
    left = survey(client, name)
    if left.pods or left.endpoints:
        if volume:
            client.say("the volume is kept: another mode uses it")
        return left
    for registry in left.registries:
        client.delete(REGISTRIES, registry.id)
        client.say(f"removed {registry.name} ({registry.id})")
    for kept in left.volumes if volume else []:
        client.delete(VOLUMES, kept.id)
        client.say(f"removed {kept.name} ({kept.id}) and the weights on it")
    return survey(client, name)


@contextmanager
def told(client: Client, name: str) -> Iterator[None]:
    """However it ends but well, what stands and costs money is said, with the commands that remove it."""
    try:
        yield
    except BaseException:
        try:
            lines = survey(client, name).tell()
            client.say("what stands now:" if lines else "nothing stands, and nothing is paid for")
        except (ApiError, KeyboardInterrupt) as unknown:
            client.say(f"what stands is unknown, RunPod did not say: {unknown}")
            lines = [f"it may cost money: scripts/deploy status --name {name}"]
            lines += [f"to remove all of it: {removal(name)} --volume"]
        for line in lines:
            client.say(f"  {line}")
        raise


def same(order: Order, thing: Pod | Endpoint) -> None:
    """Raises Refused where what stands is not what is asked for; secrets are not compared, RunPod may hide them."""
    differs = [] if thing.image in (order.image, None) else [f"image {thing.image}"]
    if thing.env is not None:
        wanted = {name: value for name, value in order.environment.items() if not SECRET.search(name)}
        differs += [f"another {name}" for name, value in wanted.items() if thing.env.get(name) != value]
    # RunPod itself takes workers away from one that was idle for days, until none may come.
    if isinstance(thing, Endpoint) and _workers(thing) != order.workers:
        differs.append("{} to {} workers".format(*_workers(thing)))
    if differs:
        told = removal(order.name, order.mode)
        raise Refused(f"{thing.name} ({thing.id}) stands with {', '.join(differs)}: {told}, then up again")


def _marked(each: Pod | Endpoint, name: str) -> bool:
    """An endpoint's environment is not always shown; then its name has to do."""
    return each.env is None or each.env.get(MARK) == name


def _workers(endpoint: Endpoint) -> tuple[int, int]:
    return endpoint.workers.get("min", 0), endpoint.workers.get("max", 0)


def _tell(each: Pod | Endpoint) -> str:
    if isinstance(each, Pod):
        return f"pod {each.name} ({each.id}): {each.status}, ${each.cost:.2f} an hour now"
    least, most = _workers(each)
    paid = f"{least} paid for all the time" if least else "paid for while they run"
    return f"endpoint {each.name} ({each.id}): {least} to {most} workers, {paid}"
