"""BentoML's figures of a request, of routes alone: it would keep some of whatever path a stranger asks for."""

from typing import Any

from bentoml._internal.server.http import instruments
from starlette.types import Receive, Scope, Send

from serving.routes import ROUTES


class Traffic(instruments.RunnerTrafficMetricsMiddleware):
    """Passes other paths by: the gate behind it refuses them, or they name a model."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> Any:
        if scope["type"] == "http" and scope["path"] not in ROUTES:
            return await self.app(scope, receive, send)
        return await super().__call__(scope, receive, send)


def install() -> None:
    """Have BentoML, which puts its own in front of our gate, take this one."""
    instruments.RunnerTrafficMetricsMiddleware = Traffic  # type: ignore[misc]
