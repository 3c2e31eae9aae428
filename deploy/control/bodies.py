"""What crosses the wire to RunPod's REST v2 and back: bodies that refuse a misspelt field, answers as far as we read.

Proven against RunPod's own OpenAPI document by tests/test_contract.py; knows nothing of how it is sent.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

Cuda = Annotated[str, Field(pattern=r"^\d+\.\d+$")]
Name = Annotated[str, Field(min_length=1)]


class Body(BaseModel):
    """What we send. A field that is None is not sent."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, validate_by_name=True)

    def write(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Answer(BaseModel):
    """What we read of an answer; the rest of it is RunPod's to change."""

    model_config = ConfigDict(extra="ignore", frozen=True, alias_generator=to_camel, validate_by_name=True)


class Container(Body):
    """What a pod and an endpoint say alike of their container; `disk` in GB, `registry` the id of a credential."""

    name: Name
    image: Name
    env: dict[str, str]
    ports: list[str]
    disk: Annotated[int, Field(ge=1)]
    data_center_ids: list[str]
    registry: str | None = None


class PodGpu(Body):
    """One type of card, without any to fall back on."""

    id: str
    count: Annotated[int, Field(ge=1)] = 1
    min_cuda_version: Cuda


class NetworkMount(Body):
    volume_id: str
    path: str


class Mounts(Body):
    network: Annotated[list[NetworkMount], Field(max_length=1)]


class PodBody(Container):
    cloud: Literal["SECURE", "COMMUNITY"] = "SECURE"
    gpu: PodGpu
    mounts: Mounts | None = None


class EndpointGpu(Body):
    """Pools of cards, and the types in them that are not to be taken."""

    pools: Annotated[list[str], Field(min_length=1)]
    excluded_types: list[str] | None = None
    count: Annotated[int, Field(ge=1)] = 1
    min_cuda_version: Cuda


class Workers(Body):
    min: Annotated[int, Field(ge=0)]
    max: Annotated[int, Field(ge=1)]
    idle_timeout: Annotated[int, Field(ge=1, le=3600)]


class QueueDelay(Body):
    type: Literal["QUEUE_DELAY"] = "QUEUE_DELAY"
    queue_delay: Annotated[float, Field(ge=0.5)]


class RequestCount(Body):
    type: Literal["REQUEST_COUNT"] = "REQUEST_COUNT"
    request_count: Annotated[int, Field(ge=1)]


class EndpointBody(Container):
    """`timeout` in milliseconds. A load balancer scales on requests, a queue here on how long they wait."""

    type: Literal["QUEUE", "LOAD_BALANCER"]
    gpu: EndpointGpu
    workers: Workers
    scaling: QueueDelay | RequestCount
    network_volumes: list[str]
    timeout: Annotated[int, Field(ge=5000)]
    flashboot: Literal["OFF", "FLASHBOOT", "PRIORITY_FLASHBOOT"] = "OFF"


class VolumeBody(Body):
    """`size` in GB; it can grow later, never shrink, and the place is for ever."""

    name: Name
    size: Annotated[int, Field(ge=10, le=4096)]
    data_center: Name


class RegistryBody(Body):
    name: Name
    username: Name
    password: Name


class ActionBody(Body):
    action: Literal["start", "stop"]


class PodCard(Answer):
    id: str


class Pod(Answer):
    """`cost` in dollars an hour, as billed now."""

    id: str
    name: str
    status: str
    image: str
    env: dict[str, str]
    cost: float
    actions: list[str] = []
    gpu: PodCard | None = None
    created_at: str
    started_at: str | None = None

    @property
    def card(self) -> str:
        return self.gpu.id if self.gpu else ""


class Urls(Answer):
    """Where an endpoint is asked: `run_sync` of a queue, `base` of a load balancer."""

    run_sync: str | None = None
    base: str | None = None
    health: str


class Pools(Answer):
    pools: list[str]


class Endpoint(Answer):
    """`env` is None where RunPod does not show it."""

    id: str
    name: str
    type: str | None = None
    image: str | None = None
    env: dict[str, str] | None = None
    request_urls: Urls | None = None
    gpu: Pools | None = None
    workers: dict[str, int]

    @property
    def pools(self) -> list[str]:
        return self.gpu.pools if self.gpu else []


class Volume(Answer):
    id: str
    name: str
    size: int
    data_center: str


class Registry(Answer):
    id: str
    name: str


class Summary(Answer):
    """How many workers an endpoint has, by state."""

    running: int
    idle: int
    initializing: int
    throttled: int
    unhealthy: int
    total: int


class Worker(Answer):
    id: str


class WorkerList(Answer):
    workers: list[Worker]
    summary: Summary


class Price(Answer):
    """Dollars an hour for one card; `serverless` is absent where no pool has it."""

    secure: float
    community: float
    serverless: float | None = None


class Place(Answer):
    """A data centre that offers a card now."""

    id: str
    availability: str


class GpuType(Answer):
    """A type of card. `id` is what pods name, `pool` what endpoints name."""

    id: str
    name: str
    pool: str | None
    memory: int
    price: Price
    availability: str = "NONE"
    data_centers: list[Place] = []


class DataCenter(Answer):
    id: str
    network_volume_types: list[str]


class LogLine(Answer):
    """One line of a log; `id` is where a broken stream is taken up again."""

    id: str = ""
    ts: str = ""
    source: str = ""
    line: str = ""
