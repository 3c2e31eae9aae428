"""What an operator wants to stand, and the bodies that ask for it. Refuses up front what could not work or would be
open to strangers. Knows RunPod's forms and limits; sends nothing."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import settings
from deploy import limits
from deploy.__main__ import refuse
from deploy.control import cost
from deploy.control.bodies import (
    EndpointBody,
    EndpointGpu,
    Mounts,
    NetworkMount,
    PodBody,
    PodGpu,
    QueueDelay,
    RegistryBody,
    RequestCount,
    VolumeBody,
    Workers,
)
from deploy.control.cards import CUDA, Offer
from models import plan
from models.catalog import Model

Mode = Literal["queue", "pod", "lb"]
# A registry's host and port, a path, and a version other than latest, a digest, or both.
IMAGE = re.compile(
    r"([\w.-]+(:\d+)?/)?[\w.-]+(/[\w.-]+)*(:(?!latest$)[\w.-]+|(:[\w.-]+)?@sha256:[0-9a-f]{64})", re.ASCII
)
VOLUME_PATH = "/runpod-volume"
PORT, HEALTH_PORT = 3000, 3001
MARK = "ZOPILOT_DEPLOYMENT"  # in the environment of what was made here, with the deployment's name
HANDED = ("ZOPILOT_GPU_API_KEY", "ZOPILOT_RECEIPT_KEY")  # from this environment: a command line is read by others
SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)$")  # names whose values are never shown
PLATFORMS = {"queue": limits.QUEUE, "pod": limits.POD, "lb": limits.BALANCER}
# A worker that is not ready by then counts as unhealthy, unless RUNPOD_INIT_TIMEOUT says otherwise (docs.runpod.io,
# serverless).
INIT_SECONDS = 420
JOB_MARGIN = 300  # seconds beyond a job's wait for its turn and its work, each of which has a deadline's time


class Refused(Exception):
    """What was asked for is not done, and why; nothing was sent."""


@dataclass(frozen=True)
class Order:
    """`keys` are those that the service will ask for, `receipt_key` "": its own to make; `cards` in the order of
    preference, all that hold the model if none is named; `registry` a user and a password; `volume_size` and `disk` in
    GB, 0: what the model needs."""

    name: str
    mode: Mode
    row: Model
    image: str
    keys: tuple[str, ...] = field(default=(), repr=False)
    receipt_key: str = field(default="", repr=False)
    env: Mapping[str, str] = field(default_factory=dict)
    cards: Sequence[str] = ()
    center: str = ""
    baked: bool = False
    volume_size: int = 0
    disk: int = 30
    workers: tuple[int, int] = (0, 3)
    idle_seconds: int = 60
    cuda: str = CUDA
    registry: tuple[str, str] = field(default=("", ""), repr=False)

    @property
    def thing(self) -> str:
        """The name of the pod or endpoint."""
        return f"{self.name}-{self.mode}"

    @property
    def serverless(self) -> bool:
        return self.mode != "pod"

    @cached_property
    def weights(self) -> int:
        """Bytes."""
        return plan.of_row(self.row).weights

    @property
    def start(self) -> cost.Range:
        """Seconds from a container's start to ready."""
        return cost.cold_start(0 if self.baked else self.weights)

    def check(self) -> None:
        """Raises Refused, and SettingError for what the container would refuse at its start."""
        if not IMAGE.fullmatch(self.image):
            raise Refused(
                f"--image {self.image!r}: name a version or a digest; :latest and none are not the same twice"
            )
        if taken := set(self.env) & {*self._environment, *HANDED}:
            raise Refused(f"--env {', '.join(sorted(taken))}: set by this command already, keys from its environment")
        refuse(self.env)
        settings.read(self.environment, form=settings.Container)
        limits.check(PLATFORMS[self.mode], settings.read(self.environment))
        if self.workers[0] > self.workers[1]:
            raise Refused(f"workers: at least {self.workers[0]}, at most {self.workers[1]} cannot be")
        if self.mode == "lb" and not self.workers[0] and self.start.high > limits.WORKER_SECONDS:
            raise Refused(
                f"--workers-min 0: RunPod's balancer waits {limits.WORKER_SECONDS:.0f} seconds for a worker, "
                f"and a cold start takes {self.start.low:.0f} to {self.start.high:.0f}: keep one (--workers-min 1), "
                "or take --mode queue"
            )

    @property
    def _environment(self) -> dict[str, str]:
        found = {
            "ZOPILOT_MODE": "queue" if self.mode == "queue" else "http",
            "ZOPILOT_MODEL": self.row.name,
            "PORT": str(PORT),
            MARK: self.name,
        }
        if self.mode == "lb":
            found |= {"PORT_HEALTH": str(HEALTH_PORT), "HEALTH_CHECK_PATH": "/ping"}
        if self.serverless and self.start.high > INIT_SECONDS:
            found["RUNPOD_INIT_TIMEOUT"] = str(math.ceil(2 * self.start.high))
        if self.keys:
            found["ZOPILOT_GPU_API_KEY"] = ",".join(self.keys)
        if self.receipt_key:
            found["ZOPILOT_RECEIPT_KEY"] = self.receipt_key
        return found

    @property
    def environment(self) -> dict[str, str]:
        """Of the container."""
        return {**self.env, **self._environment}

    def volume_body(self, center: str) -> VolumeBody:
        """Room for the weights, what is beside them, and a quarter more. Raises Refused where they have none."""
        if self.volume_size and self.volume_size * 1e9 < self.weights:
            raise Refused(f"--volume-size {self.volume_size}: too few GB for {self.row.name}")
        size = self.volume_size or max(10, math.ceil(1.25 * self.weights / 1e9) + 5)
        return VolumeBody(name=volume_name(self.name), size=size, data_center=center)

    def registry_body(self) -> RegistryBody:
        user, password = self.registry
        return RegistryBody(name=registry_name(self.name), username=user, password=password)

    def pod_body(self, offer: Offer, center: str, volume: str, registry: str | None) -> PodBody:
        """`volume` and `registry` are ids; "": the weights are in the image."""
        return PodBody(
            name=self.thing,
            image=self.image,
            env=self.environment,
            ports=[f"{PORT}/http"],
            disk=self.disk,
            registry=registry,
            data_center_ids=[center] if center else [],
            gpu=PodGpu(id=offer.gpu.id, min_cuda_version=self.cuda),
            mounts=Mounts(network=[NetworkMount(volume_id=volume, path=VOLUME_PATH)]) if volume else None,
        )

    def endpoint_body(
        self,
        offer: Offer,
        excluded: Sequence[str],
        centers: Sequence[str],
        volumes: Sequence[str],
        registry: str | None,
    ) -> EndpointBody:
        """One pool; where the volumes are, and what of the pool is not to be taken."""
        balanced = self.mode == "lb"
        least, most = self.workers
        seconds = 2 * settings.read(self.environment).deadline_ms / 1000 + JOB_MARGIN
        return EndpointBody(
            name=self.thing,
            type="LOAD_BALANCER" if balanced else "QUEUE",
            image=self.image,
            env=self.environment,
            ports=[f"{PORT}/http", f"{HEALTH_PORT}/http"] if balanced else [],
            disk=self.disk,
            registry=registry,
            data_center_ids=list(centers),
            gpu=EndpointGpu(
                pools=[offer.gpu.pool or ""], excluded_types=list(excluded) or None, min_cuda_version=self.cuda
            ),
            workers=Workers(min=least, max=most, idle_timeout=self.idle_seconds),
            scaling=RequestCount(request_count=offer.rooms) if balanced else QueueDelay(queue_delay=4),
            network_volumes=list(volumes),
            timeout=int(1000 * (limits.BALANCER.whole or 0 if balanced else seconds)),
            flashboot="OFF" if balanced else "FLASHBOOT",
        )


def volume_name(name: str) -> str:
    """Of the volume that all modes of a deployment share."""
    return f"{name}-weights"


def registry_name(name: str) -> str:
    return f"{name}-registry"
