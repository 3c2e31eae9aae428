"""What the service says of itself, as it crosses the wire. Knows no route and no model."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Open(BaseModel):
    """More may be told than is promised here."""

    model_config = ConfigDict(extra="allow")


class Alive(BaseModel):
    alive: bool


class Ready(BaseModel):
    ready: Literal[True]


class Health(Open):
    status: Literal["loading", "ready", "failed"]
    uptime: float = Field(description="seconds")


class Encoder(BaseModel):
    name: str
    tag: str
    state: Literal["not loaded", "loading", "loaded"]
    bytes: int
    users: int


class Memory(BaseModel):
    free: int
    total: int
    set_aside_for_encoders: int


class Device(BaseModel):
    kind: Literal["cuda", "cpu"]
    name: str
    capability: str | None
    driver: str | None
    memory: Memory = Field(description="bytes")


class Info(Open):
    model: str
    tag: str = Field(description="of its weights")
    source: dict[str, str] = Field(description="where these were published, with the revision")
    bits: int
    ledger: dict[str, int] = Field(description="bytes in memory, by what they are")
    card: str
    context_length: int
    sees: bool = Field(description="whether it reads images")
    made_with: dict[str, Any]
    encoders: list[Encoder]
    device: Device
    calibrations: list[dict[str, Any]]


class Ended(BaseModel):
    request_id: str
    route: str
    seconds: float
    outcome: str = Field(description="done, or the code of the error")


class Active(BaseModel):
    request_id: str
    route: str
    seconds: float
    progress: float | None = Field(None, ge=0, le=1, description="share of the work that it may take at most")


class Activity(BaseModel):
    state: Literal["loading", "ready", "failed"]
    queue: dict[str, Any]
    active: list[Active]
    recent: list[Ended]


class Served(BaseModel):
    id: str
    object: Literal["model"]
    created: int = Field(description="seconds of Unix time")
    owned_by: str
    tag: str = Field(description="of its weights")


class Models(BaseModel):
    object: Literal["list"]
    data: list[Served]


class Anything(Open):
    pass


class OpenAPI(Open):
    openapi: str
    paths: dict[str, Any]
