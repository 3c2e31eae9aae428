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


class Info(Open):
    model: str
    card: str
    context_length: int
    made_with: dict[str, Any]
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


class Jobs(BaseModel):
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
