"""--dry-run: each request that would be sent is printed as a JSON line, and answered as RunPod might, by nobody.

What only RunPod knows stands in angle brackets; keys and passwords are struck out, so that a line can be shown.
"""

import json
from typing import Any

import httpx

from deploy.control.cards import TYPES
from deploy.control.order import SECRET

CENTER = "<a data centre with that card and network volumes>"
STRUCK = "***"
MOMENT = "2026-01-01T00:00:00Z"


class Rehearsal(httpx.BaseTransport):
    """In place of the network, in an account with nothing but the network volume `volume`, "": with nothing."""

    def __init__(self, center: str, volume: str) -> None:
        self._center = center or CENTER
        made = {"id": f"<id of {volume}>", "name": volume, "size": 4096, "dataCenter": self._center}
        self._volumes = [made] if volume else []
        self._made: dict[str, dict[str, Any]] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else None
        line = {"method": request.method, "url": str(request.url)}
        print(json.dumps({**line, "body": _strike(body)} if body else line, ensure_ascii=False), flush=True)
        found = self._answer(request.method, request.url.path, body)
        return httpx.Response(201 if request.method == "POST" else 200, json=found)

    def _answer(self, method: str, path: str, body: Any) -> Any:
        lists = {
            "/v2/pods": "pods",
            "/v2/serverless": "endpoints",
            "/v2/network-volumes": "networkVolumes",
            "/v2/registries": "registries",
        }
        if method == "POST" and path in lists:
            return self._made.setdefault(path, {**_MADE, **body, "id": f"<id of {body['name']}>"})
        if path in lists:
            return {lists[path]: self._volumes if path == "/v2/network-volumes" else []}
        if path == "/v2/catalog/gpus":
            return {"gpus": [_gpu(type, self._center) for types in TYPES.values() for type in types]}
        if path == "/v2/catalog/datacenters":
            return {"dataCenters": [{"id": self._center, "networkVolumeTypes": ["STANDARD"]}]}
        if path.endswith("/workers"):
            return {"workers": [], "summary": dict.fromkeys(_STATES, 1)}
        return self._made.get("/v2/pods", {})


_STATES = ("running", "idle", "initializing", "throttled", "unhealthy", "total")
_URL = "http://rehearsal.invalid"
_MADE = {
    "status": "RUNNING",
    "cost": 0.0,
    "createdAt": MOMENT,
    "requestUrls": {"runSync": f"{_URL}/runsync", "base": _URL, "health": f"{_URL}/health"},
}


def _gpu(type: str, center: str) -> dict[str, Any]:
    return {
        "id": type,
        "name": type,
        "pool": f"<pool of {type}>",
        "memory": 0,
        "price": {"secure": 0, "community": 0, "serverless": 0},
        "availability": "HIGH",
        "dataCenters": [{"id": center, "availability": "HIGH"}],
    }


def _strike(body: Any) -> Any:
    """The same without what must not be read over a shoulder."""
    struck = dict(body)
    if "password" in struck:
        struck["password"] = STRUCK
    if "env" in struck:
        struck["env"] = {name: STRUCK if SECRET.search(name) else value for name, value in struck["env"].items()}
    return struck
