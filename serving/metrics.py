"""BentoML's figures of requests, kept to the routes that there are.

BentoML 1.4.39 labels them with the path as it was asked for, before anyone is let in: each path that a stranger
makes up would take memory and disk for as long as the process lives.
"""

from typing import Any

from bentoml._internal.server.http.instruments import RunnerTrafficMetricsMiddleware as Counting

from serving.routes import ROUTES


def count_routes_alone() -> None:
    """From now on other paths pass uncounted. Tests pin this to the pinned BentoML."""
    count = Counting.__call__

    async def count_known(self: Any, scope: Any, receive: Any, send: Any) -> None:
        known = scope["type"] != "http" or scope["path"] in ROUTES
        await (count(self, scope, receive, send) if known else self.app(scope, receive, send))

    Counting.__call__ = count_known  # type: ignore[method-assign]
