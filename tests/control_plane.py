"""RunPod's REST v2 on 127.0.0.1: it keeps what is made, has cards here and none there, and fails when it is told to.

Every request and every answer of its own is judged by RunPod's document where that is at hand (tests/contract.py).
Behind it stand the services that it claims to run, as far as a prober asks them.
"""

import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import RLock, Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.contract import contract

KEY = "rpa_of_a_test"
MOMENT = "2026-11-20T12:00:00Z"
RATES = {"RateLimit-Policy": '"minute";q=60;w=60'}
LISTS = {
    "/v2/pods": ("pods", "pod"),
    "/v2/serverless": ("endpoints", "ep"),
    "/v2/network-volumes": ("networkVolumes", "vol"),
    "/v2/registries": ("registries", "reg"),
}
# type, pool, GB, dollars an hour as a pod and serverless
CARDS = (
    ("NVIDIA GeForce RTX 4090", "ADA_24", 24, 0.69, 1.1),
    ("NVIDIA GeForce RTX 5090", "ADA_32_PRO", 32, 0.99, 1.58),
    ("NVIDIA L40S", "ADA_48_PRO", 48, 0.86, 1.9),
    ("NVIDIA L40", "ADA_48_PRO", 48, 0.99, 1.9),
    ("NVIDIA RTX PRO 6000 Blackwell MIG 24GB", "ADA_48_PRO", 24, 0.5, 1.9),
    ("NVIDIA H200", None, 141, 3.99, None),
)
CENTERS = ("EU-RO-1", "US-KS-2", "US-TX-3")  # the last cannot be filled without a pod, so no volume belongs there
REASONS = {
    400: "There are no longer any instances available with the requested specifications.",
    402: "insufficient balance",
    403: "access denied",
    404: "resource not found",
    409: "not valid in its current state",
    422: "Request validation failed.",
    429: "rate limit exceeded for the minute window",
    500: "internal error",
    503: "upstream unavailable",
}


@dataclass(frozen=True)
class Fault:
    """What happens to a request: it is answered with `status`, or the connection is cut (0), or the asking process is
    killed (-1). With `after` it is carried out first."""

    status: int
    after: bool = False
    detail: str = ""
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Request:
    """As it came, and how it was answered."""

    method: str
    path: str
    query: str
    body: Any
    status: int


@dataclass
class Plane:
    """The account. `faults` by the place of a request in the order of arrival, `always` for all from there on."""

    url: str = ""
    things: dict[str, dict[str, dict[str, Any]]] = field(default_factory=lambda: {path: {} for path in LISTS})
    requests: list[Request] = field(default_factory=list)
    faults: dict[int, Fault] = field(default_factory=dict)
    always: Fault | None = None
    only: str = ""  # `always` for this method alone
    full: set[tuple[str, str]] = field(default_factory=set)  # type or pool, and data centre: no card is free
    stopped: bool = False  # services do not answer
    dead_on_arrival: bool = False  # containers end at once
    activity: dict[str, Any] = field(default_factory=lambda: {"active": [], "recent": [], "queue": {}})
    service_key: str = "sesame"
    logs: list[list[str]] = field(default_factory=list)  # the lines of one connection after the other
    resumed: list[str] = field(default_factory=list)
    complaints: list[object] = field(default_factory=list)  # what neither side may do
    prober: int = 0  # the process that Fault(-1) kills
    lock: RLock = field(default_factory=RLock)
    _count: int = 0
    _numbered: int = 0

    def named(self, path: str) -> list[str]:
        return [thing["name"] for thing in self.things[path].values()]

    @property
    def everything(self) -> list[str]:
        """The ids of all that stands."""
        return [id for things in self.things.values() for id in things]

    def posts(self, path: str = "/v2/") -> list[Request]:
        return [each for each in self.requests if each.method == "POST" and each.path.startswith(path)]

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, Any, dict[str, str]]:
        """Status 0: cut the connection."""
        with self.lock:
            split = urlsplit(target)
            fault = self.faults.pop(len(self.requests), None)
            if fault is None and self.always and self.only in ("", method):
                fault = self.always
            value = json.loads(body) if body else None
            self.requests.append(Request(method, split.path, split.query, value, fault.status if fault else 0))
            if fault and fault.status == -1 and not fault.after:
                os.kill(self.prober, signal.SIGKILL)
                return 0, None, {}
            judge = contract()
            verdict = judge.judge(method, split.path, split.query, headers, body) if judge else None
            if verdict and verdict.status:
                self.complaints.append((method, target, verdict))
                return self._refuse(verdict.status, verdict.errors)
            if fault and not fault.after:
                return self._fail(judge, method, verdict.path if verdict else "", fault)
            status, found = self._carry_out(method, split.path, parse_qs(split.query), value)
            self.requests[-1] = replace(self.requests[-1], status=status)
            if judge and verdict:
                judge.check_answer(method, verdict.path, status, found)
            if fault and fault.status == -1:
                os.kill(self.prober, signal.SIGKILL)
                return 0, None, {}
            return (
                self._fail(judge, method, verdict.path if verdict else "", fault) if fault else (status, found, RATES)
            )

    def _refuse(self, status: int, errors: list[str]) -> tuple[int, Any, dict[str, str]]:
        self.requests[-1] = replace(self.requests[-1], status=status)
        return status, {"title": "Refused", "status": status, "detail": REASONS[422], "errors": errors}, {}

    def _fail(self, judge: Any, method: str, path: str, fault: Fault) -> tuple[int, Any, dict[str, str]]:
        if not fault.status:
            return 0, None, {}
        detail = fault.detail or REASONS.get(fault.status, "no reason")
        problem = {"title": "Problem", "status": fault.status, "detail": detail}
        if judge:
            judge.check_answer(method, path, fault.status, problem)
        return fault.status, problem, dict(fault.headers)

    def _carry_out(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        if path.startswith("/v2/catalog/"):
            return self._catalog(path, query)
        if path.endswith("/action"):
            return self._act(path.split("/")[3], body["action"])
        if path.endswith("/workers"):
            return self._workers(path.split("/")[3])
        if path.endswith("/logs"):
            return (200, "") if path.split("/")[3] in self.everything else _problem(404, "nothing of that id")
        kind, _, id = path.removeprefix("/v2/").partition("/")
        things = self.things[f"/v2/{kind}"]
        if method == "POST":
            return self._make(f"/v2/{kind}", body)
        if not id:
            return 200, {LISTS[path][0]: [_shown(each) for each in things.values()]}
        if id not in things:
            return _problem(404, f"no {kind} {id}")
        if method == "DELETE":
            users = [each for each in self.things["/v2/pods"].values() if each["registry"] == id]
            if users:
                return _problem(400, "Registry credential is in use by a pod and cannot be deleted")
            del things[id]
            return 204, None
        if kind == "pods":
            self._advance(things[id])
        return 200, _shown(things[id])

    def _advance(self, pod: dict[str, Any]) -> None:
        """Each look finds it one step further."""
        steps = {"PROVISIONING": "STARTING", "STARTING": "EXITED" if self.dead_on_arrival else "RUNNING"}
        if pod["status"] in steps:
            _turn(pod, steps[pod["status"]])

    def _act(self, id: str, action: str) -> tuple[int, Any]:
        pod = self.things["/v2/pods"].get(id)
        if pod is None:
            return _problem(404, "pod not found")
        if action not in pod["actions"]:
            return _problem(409, f"{action} is not valid for {pod['status']}")
        _turn(pod, {"stop": "EXITED", "start": "STARTING"}[action])
        return 200, _shown(pod)

    def _workers(self, id: str) -> tuple[int, Any]:
        """One more of those that are to be kept is up at each look."""
        endpoint = self.things["/v2/serverless"].get(id)
        if endpoint is None:
            return _problem(404, "endpoint not found")
        wanted = endpoint["workers"]["min"]
        idle = 0 if self.stopped else min(wanted, self._count)
        self._count += 1
        states = ["IDLE"] * idle + ["INITIALIZING"] * (wanted - idle)
        workers = [
            {"id": f"{id}-{place}", "status": state, "gpuCount": 1, "isStale": False}
            for place, state in enumerate(states)
        ]
        summary = dict.fromkeys(("running", "throttled", "unhealthy"), 0)
        return 200, {
            "workers": workers,
            "summary": {**summary, "idle": idle, "initializing": wanted - idle, "total": wanted},
            "endpointVersion": 1,
        }

    def _make(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if broken := self._rule(path, body):
            return broken
        self._count = 0
        self._numbered += 1
        id = f"{LISTS[path][1]}{self._numbered}"
        made = {**body, "id": id}
        if path == "/v2/pods":
            made |= self._pod(body)
        elif path == "/v2/serverless":
            made |= self._endpoint(id, body)
        elif path == "/v2/network-volumes":
            made.setdefault("type", "STANDARD")
        else:
            made = {"id": id, "name": body["name"]}
        self.things[path][id] = made
        return 201, _shown(made)

    def _pod(self, body: dict[str, Any]) -> dict[str, Any]:
        """What RunPod adds to what was asked for."""
        filled = {"disk": 20, "ports": [], "cloud": "SECURE", "template": None, "registry": None, **body}
        gpu = {"id": body["gpu"]["id"], "count": 1}
        cost = next(secure for type, _, _, secure, _ in CARDS if type == gpu["id"])
        center = (body.get("dataCenterIds") or CENTERS[:1])[0]
        pod: dict[str, Any] = {
            **filled,
            "args": "",
            "gpu": gpu,
            "mounts": body.get("mounts", {}),
            "dataCenterId": center,
            "cudaVersion": "13.0",
            "ssh": {"proxy": None, "direct": None},
            "locked": False,
            "globalNetworking": {"enabled": False},
            "createdAt": MOMENT,
            "_cost": cost,
        }
        _turn(pod, "PROVISIONING")
        return pod

    def _endpoint(self, id: str, body: dict[str, Any]) -> dict[str, Any]:
        base = f"{self.url}/ep/{id}"
        jobs = ("run", "status", "stream", "cancel", "retry", "health")
        urls = {
            **{name: f"{base}/{name}" for name in jobs},
            "runSync": f"{base}/runsync",
            "purgeQueue": f"{base}/purge",
        }
        if body["type"] == "LOAD_BALANCER":
            urls = {"base": base, "health": f"{base}/ping"}
        gpu = {"allowedCudaVersions": [], "minCudaVersion": None, **body["gpu"]}
        # RunPod is known to append this to the name of an endpoint with FlashBoot.
        name = body["name"] + (" -fb" if body.get("flashboot") == "FLASHBOOT" else "")
        return {"name": name, "requestUrls": urls, "gpu": gpu, "createdAt": MOMENT}

    def serve(self, path: str, headers: dict[str, str]) -> tuple[int, Any]:
        """The services themselves: /pod/ID/… and /ep/ID/…"""
        with self.lock:
            place, id, route = (*path.strip("/").split("/", 2), "")[:3]
            things = self.things["/v2/pods" if place == "pod" else "/v2/serverless"]
            if id not in things:
                return 404, {}
            if place == "ep" and headers.get("authorization") != f"Bearer {KEY}":
                return 401, {}
            if route == "health" and place == "ep":
                return 200, {"jobs": {}, "workers": {}}
            up = things[id].get("status") == "RUNNING" if place == "pod" else things[id]["workers"]["min"] > 0
            if self.stopped or not up:
                return 502, {}
            if route == "status":
                return (200, self.activity) if headers.get("x-api-key") == self.service_key else (401, {})
            return (200, {"ready": True}) if route == "readyz" else (404, {})

    def _rule(self, path: str, body: dict[str, Any]) -> tuple[int, Any] | None:
        """Rules between fields, and whether there is a card: what a schema cannot say."""
        volumes = self.things["/v2/network-volumes"]
        if path == "/v2/network-volumes" and body["dataCenter"] not in CENTERS:
            return _problem(400, "the data center keeps no network volumes")
        if path not in ("/v2/pods", "/v2/serverless"):
            return None
        gpu: dict[str, Any] = body.get("gpu", {})
        if bool(gpu) == bool(body.get("cpu")):
            return _problem(400, "exactly one of gpu and cpu must be set")
        if gpu.get("allowedCudaVersions") and gpu.get("minCudaVersion"):
            return _problem(400, "allowedCudaVersions and minCudaVersion exclude each other")
        mounts = [each["volumeId"] for each in body.get("mounts", {}).get("network", [])]
        ids = mounts + body.get("networkVolumes", [])
        if any(id not in volumes for id in ids):
            return _problem(404, "network volume not found")
        centers = body.get("dataCenterIds") or list(CENTERS)
        if any(volumes[id]["dataCenter"] not in centers for id in ids):
            return _problem(400, "the network volume is in another data center")
        if body.get("registry") and body["registry"] not in self.things["/v2/registries"]:
            return _problem(404, "registry not found")
        known = {card for type, pool, *_ in CARDS for card in (type, pool)}
        wanted = [gpu["id"]] if path == "/v2/pods" else gpu["pools"]
        if not set(wanted) <= known:
            return _problem(400, "no such gpu or pool")
        members = {type for type, pool, *_ in CARDS if pool in wanted}
        if not set(gpu.get("excludedTypes", [])) < (members or {""}):
            return _problem(400, "excludedTypes must be some of the types in pools")
        if body.get("type") == "QUEUE" and "requestCount" in body["scaling"] and "idleTimeout" in body["workers"]:
            return _problem(400, "idleTimeout is not applicable to a queue that scales on requestCount")
        if all((card, center) in self.full for card in wanted for center in centers):
            return _problem(400, REASONS[400])
        return None

    def _catalog(self, path: str, query: dict[str, list[str]]) -> tuple[int, Any]:
        if path.endswith("/datacenters"):
            return 200, {"dataCenters": [_center(id) for id in (*CENTERS, "AP-JP-1")]}
        if ("include" in query) != ("product" in query):
            return _problem(400, "product is required with include=AVAILABILITY, and valid only with it")
        return 200, {"gpus": [_gpu(*card) for card in CARDS]}


@contextmanager
def serve() -> Iterator[Plane]:
    """Run an empty account on a free port until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.plane = plane = Plane(f"http://127.0.0.1:{server.server_port}")  # type: ignore[attr-defined]
    thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield plane
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert not plane.complaints


class Handler(BaseHTTPRequestHandler):
    """Everything; what the plane answers with status 0 ends the connection in the middle."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        plane: Plane = self.server.plane  # type: ignore[attr-defined]
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", 0)))
        more: dict[str, str] = {}
        if self.path.startswith("/v2/") and urlsplit(self.path).path.endswith("/logs"):
            return self._stream(plane, headers)
        if self.path.startswith("/v2/"):
            try:
                status, found, more = plane.answer(self.command, self.path, headers, body)
            except Exception as error:
                plane.complaints.append(error)
                raise
        else:
            status, found = plane.serve(urlsplit(self.path).path, headers)
        if not status:
            return self._cut()
        written = b"" if found is None else json.dumps(found).encode()
        self.send_response(status)
        for name, value in more.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Type", "application/json" if status < 400 else "application/problem+json")
            self.send_header("Content-Length", str(len(written)))
        self.end_headers()
        self.wfile.write(written)

    do_POST = do_PATCH = do_DELETE = do_GET

    def _stream(self, plane: Plane, headers: dict[str, str]) -> None:
        """One list of `logs`, then the connection ends: cut, or with the stream's own end where nothing follows."""
        status, problem, _ = plane.answer("GET", self.path, headers, b"")
        if status >= 400:
            written = json.dumps(problem).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(written)))
            self.end_headers()
            self.wfile.write(written)
            return
        plane.resumed.append(headers.get("last-event-id", ""))
        lines = plane.logs.pop(0) if plane.logs else []
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in lines:
            written = f"{line}\n".encode()
            self.wfile.write(f"{len(written):x}\r\n".encode() + written + b"\r\n")
        if plane.logs:
            return self._cut()
        self.wfile.write(b"0\r\n\r\n")

    def _cut(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _shown(thing: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in thing.items() if not key.startswith("_")}


def _problem(status: int, detail: str) -> tuple[int, Any]:
    return status, {"title": "Problem", "status": status, "detail": detail}


def _turn(pod: dict[str, Any], status: str) -> None:
    actions = {"RUNNING": ["stop", "restart", "terminate"], "EXITED": ["start", "terminate"]}
    pod["status"], pod["actions"] = status, actions.get(status, ["stop", "terminate"])
    pod["cost"] = 0.0 if status == "EXITED" else pod["_cost"]
    pod["runtime"] = {"uptime": 1} if status == "RUNNING" else None
    pod["startedAt"] = None if status == "PROVISIONING" else MOMENT


def _center(id: str) -> dict[str, Any]:
    kinds = ["STANDARD"] if id in CENTERS else []
    about = {"region": "EUROPE", "networkVolumeTypes": kinds, "compliance": [], "globalNetwork": False}
    return {"id": id, "name": id, **about}


def _gpu(type: str, pool: str | None, memory: int, secure: float, flex: float | None) -> dict[str, Any]:
    price = {"secure": secure, "community": secure, **({"serverless": flex} if flex else {})}
    places = [
        {"id": id, "name": id, "availability": level}
        for id, level in zip(CENTERS, ("LOW", "HIGH", "HIGH"), strict=True)
    ]
    return {
        "id": type,
        "name": type.removeprefix("NVIDIA "),
        "pool": pool,
        "manufacturer": "NVIDIA",
        "memory": memory,
        "secure": True,
        "community": True,
        "price": price,
        "maxCount": {"secure": 8, "community": 4},
        "availability": "HIGH",
        "dataCenters": places,
        "cudaVersions": [{"version": "13.0", "available": True}],
    }
