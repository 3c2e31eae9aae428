"""A model hub on 127.0.0.1: what huggingface_hub asks when it fetches a snapshot, and the ways in which it can fail."""

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SO_LINGER, SOL_SOCKET
from threading import Lock, Thread
from urllib.parse import unquote, urlsplit

REVISION = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Request:
    """What was asked, and how many bytes of a body were sent for it."""

    method: str
    path: str  # of a file in the repository; "" for the list of them
    range: str
    authorization: str
    status: int
    sent: int = 0


@dataclass
class Repository:
    """One repository at REVISION, and how it behaves."""

    files: dict[str, bytes]
    token: str = ""  # asked of every request if set
    gated: bool = False  # the list is public, files are not: 401 without a token, 403 with one
    forbidden: bool = False  # 403 for everything, without the hub's own error code
    unavailable: dict[str, int] = field(default_factory=dict)  # path → how many GETs are answered with 503
    cuts: dict[str, int] = field(default_factory=dict)  # path → how many downloads end in the middle
    reset: bool = False  # cut with RST, not FIN
    requests: list[Request] = field(default_factory=list)

    def asked(self, method: str = "GET") -> list[str]:
        """Paths of the files that were asked for."""
        return [request.path for request in self.requests if request.method == method and request.path]

    def sent(self, path: str) -> int:
        return sum(request.sent for request in self.requests if request.path == path and request.method == "GET")


@dataclass
class Hub:
    """Its address, and its repositories by name."""

    url: str
    repositories: dict[str, Repository] = field(default_factory=dict)


@contextmanager
def serve() -> Iterator[Hub]:
    """Run a hub on a free port until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.hub = hub = Hub(f"http://127.0.0.1:{server.server_port}")  # type: ignore[attr-defined]
    thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    """GET /api/models/NAME/tree/REVISION, and HEAD and GET of /NAME/resolve/REVISION/PATH."""

    protocol_version = "HTTP/1.1"
    lock = Lock()

    def do_GET(self) -> None:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        listing = parts[:2] == ["api", "models"]
        owner, name, kind, revision, *rest = (parts[2:] if listing else parts) + [""] * 4
        repository = hub.repositories.get(f"{owner}/{name}")
        path = "/".join(part for part in rest if part)
        if repository is None:
            self.refuse(None, path, 404, "RepoNotFound")
        elif revision != REVISION or kind != ("tree" if listing else "resolve"):
            self.refuse(repository, path, 404, "RevisionNotFound")
        elif status := self.refusal(repository, path):
            self.refuse(repository, path, status, "GatedRepo" if repository.gated else "")
        elif listing:
            self.send(repository, "", json.dumps(self.tree(repository)).encode())
        elif path in repository.files:
            self.send(repository, path, repository.files[path])
        else:
            self.refuse(repository, path, 404, "EntryNotFound")

    do_HEAD = do_GET

    def refusal(self, repository: Repository, path: str) -> int:
        """The status of the error that this request gets, or 0."""
        authorization = self.headers.get("Authorization", "")
        if repository.token and authorization != f"Bearer {repository.token}":
            return 401
        if repository.forbidden:
            return 403
        if repository.gated and path:
            return 403 if authorization else 401
        with self.lock:
            if self.command == "GET" and repository.unavailable.get(path, 0):
                repository.unavailable[path] -= 1
                return 503
        return 0

    def refuse(self, repository: Repository | None, path: str, status: int, code: str) -> None:
        if repository is not None:
            self.note(repository, path, status)
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def tree(self, repository: Repository) -> list[dict[str, object]]:
        return [
            {"type": "file", "path": path, "size": len(body), "oid": sha256(body).hexdigest()[:40]}
            for path, body in repository.files.items()
        ]

    def send(self, repository: Repository, path: str, body: bytes) -> None:
        wanted = self.headers.get("Range", "")
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        rest = body[start:]
        cut = False
        with self.lock:
            if self.command == "GET" and repository.cuts.get(path, 0):
                repository.cuts[path] -= 1
                cut = True
        sent = b"" if self.command == "HEAD" else rest[: len(rest) // 2] if cut else rest
        self.note(repository, path, 206 if wanted else 200, len(sent))
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(rest)))
        self.send_header("Content-Type", "application/json" if not path else "application/octet-stream")
        self.send_header("ETag", f'"{sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        self.wfile.write(sent)
        if cut:
            self.close_connection = True
            if repository.reset:
                self.connection.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

    def note(self, repository: Repository, path: str, status: int, sent: int = 0) -> None:
        wanted, authorization = self.headers.get("Range", ""), self.headers.get("Authorization", "")
        repository.requests.append(Request(self.command, path, wanted, authorization, status, sent))

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the requests are kept."""
