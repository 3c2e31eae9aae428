"""The S3 API of network volumes on 127.0.0.1, no more of it than RunPod documents: whatever else is asked is an error.

Every signature, digest and size is checked. What it holds can be damaged, and its answers can fail, are cut or lost.
"""

import hashlib
import hmac
import re
import socket
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import unescape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import ClassVar
from urllib.parse import parse_qsl, quote, unquote, urlsplit

KEY, SECRET, REGION, VOLUME = "user_2abc", "rps_SECRETSECRET", "EU-RO-1", "vol1234567"
MOST = 500_000_000  # bytes in one request


@dataclass
class Begun:
    """A multipart upload under way."""

    key: str
    parts: dict[int, bytes] = field(default_factory=dict)
    etags: dict[int, str] = field(default_factory=dict)  # of what came, whatever has become of it


@dataclass
class Shelf:
    """What the volume holds, what was asked of it in order, and how it behaves."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    begun: dict[str, Begun] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)  # operation and key
    most: int = MOST
    busy: int = 0  # so many requests are answered with 503
    lost: set[str] = field(default_factory=set)  # operations that are done once without an answer
    parts_taken: int = MOST  # parts; further ones wait until there is `room`
    room: Event = field(default_factory=Event)
    cut: set[str] = field(default_factory=set)  # keys of which a body is once cut in the middle
    damage: Callable[[str, bytes], bytes] = lambda key, body: body  # as it is written

    def count(self, operation: str) -> int:
        return sum(each == operation for each, _ in self.asked)

    def sent(self) -> list[str]:
        """Keys in the order in which something was written to them."""
        writes = ("PutObject", "UploadPart", "CompleteMultipartUpload")
        return [key for operation, key in self.asked if operation in writes]


@contextmanager
def serve() -> Iterator[Shelf]:
    """Run it on a free port until the block ends."""
    server = Server(("127.0.0.1", 0), Handler)
    Handler.shelf = shelf = Shelf(f"http://127.0.0.1:{server.server_port}")
    thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield shelf
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Server(ThreadingHTTPServer):
    """A client that is killed is no error of ours."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class Refusal(Exception):
    """An S3 error."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status, self.code = status, code


class Handler(BaseHTTPRequestHandler):
    """One request; which operation it is, its method and its query say together."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    shelf: ClassVar[Shelf]
    lock: ClassVar[Lock] = Lock()

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "partNumber" in self.path and self.shelf.count("UploadPart") >= self.shelf.parts_taken:
            self.shelf.room.wait()
            return self._break()
        try:
            with self.lock:
                self._check(body)
                operation, answer, status = self._answer(body)
        except Refusal as refusal:
            xml = f"<Error><Code>{refusal.code}</Code><Message>no</Message></Error>".encode()
            return self._say(refusal.status, xml)
        if operation in self.shelf.lost:
            self.shelf.lost.remove(operation)
            return self._break()
        self._say(status, answer)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def _check(self, body: bytes) -> None:
        if self.shelf.busy:
            self.shelf.busy -= 1
            raise Refusal(503, "SlowDown")
        if len(body) > self.shelf.most:
            raise Refusal(400, "EntityTooLarge")
        foreign = [name for name in self.headers if name.lower().startswith(("x-amz-checksum", "x-amz-sdk-checksum"))]
        if foreign or "aws-chunked" in self.headers.get("Content-Encoding", ""):
            raise Refusal(501, "NotImplemented")
        if self.headers["x-amz-content-sha256"] != hashlib.sha256(body).hexdigest():
            raise Refusal(400, "XAmzContentSHA256Mismatch")
        digest = b64encode(hashlib.md5(body).digest()).decode()
        if self.command == "PUT" and self.headers["Content-MD5"] != digest:
            raise Refusal(400, "BadDigest")
        scheme = r"AWS4-HMAC-SHA256 Credential=(\S+?)/(\d+)/(\S+)/s3/aws4_request, SignedHeaders=(\S+), Signature=(\w+)"
        found = re.fullmatch(scheme, self.headers.get("Authorization", ""))
        if not found or found[1] != KEY:
            raise Refusal(403, "InvalidAccessKeyId")
        if found[3] != REGION or found[5] != self._signature(found[2], found[4]):
            raise Refusal(403, "SignatureDoesNotMatch")

    def _signature(self, day: str, names: str) -> str:
        """Signature version 4 of this request, as its owner must have made it."""
        url = urlsplit(self.path)
        query = "&".join(
            f"{quote(name, '-_.~')}={quote(value, '-_.~')}"
            for name, value in sorted(parse_qsl(url.query, keep_blank_values=True))
        )
        headers = "".join(f"{name}:{' '.join(self.headers[name].split())}\n" for name in names.split(";"))
        request = "\n".join((self.command, url.path, query, headers, names, self.headers["x-amz-content-sha256"]))
        scope = f"{day}/{REGION}/s3/aws4_request"
        digest = hashlib.sha256(request.encode()).hexdigest()
        text = "\n".join(("AWS4-HMAC-SHA256", self.headers["x-amz-date"], scope, digest))
        key = f"AWS4{SECRET}".encode()
        for part in (*scope.split("/"), text):
            key = hmac.digest(key, part.encode(), "sha256")
        return key.hex()

    def _answer(self, body: bytes) -> tuple[str, bytes, int]:
        """The operation, what is answered and with which status."""
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        bucket, _, key = unquote(url.path)[1:].partition("/")
        if bucket != VOLUME:
            raise Refusal(404, "NoSuchBucket")
        shape = (self.command, *sorted(query.keys() - {"prefix", "max-uploads", "max-parts", "encoding-type"}))
        operations: dict[tuple[str, ...], Callable[..., tuple[bytes, int]]] = {
            ("HEAD",): self._HeadObject,
            ("GET",): self._GetObject,
            ("PUT",): self._PutObject,
            ("DELETE",): self._DeleteObject,
            ("GET", "uploads"): self._ListMultipartUploads,
            ("GET", "uploadId"): self._ListParts,
            ("POST", "uploads"): self._CreateMultipartUpload,
            ("PUT", "partNumber", "uploadId"): self._UploadPart,
            ("POST", "uploadId"): self._CompleteMultipartUpload,
        }
        if shape not in operations:
            raise Refusal(501, "NotImplemented")
        operation = operations[shape].__name__[1:]
        self.shelf.asked.append((operation, key or query.get("prefix", "")))
        return operation, *operations[shape](key, query, body)

    def _HeadObject(self, key: str, query: dict[str, str], body: bytes) -> tuple[bytes, int]:
        return self._file(key), 200

    def _GetObject(self, key: str, query: dict[str, str], body: bytes) -> tuple[bytes, int]:
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
        assert found
        return self._file(key)[int(found[1]) : int(found[2]) + 1], 206

    def _PutObject(self, key: str, query: dict[str, str], body: bytes) -> tuple[bytes, int]:
        self.shelf.files[key] = self.shelf.damage(key, body)
        return b"", 200

    def _DeleteObject(self, key: str, query: dict[str, str], body: bytes) -> tuple[bytes, int]:
        self.shelf.files.pop(key, None)
        return b"", 204

    def _CreateMultipartUpload(self, key: str, query: dict[str, str], body: bytes) -> tuple[bytes, int]:
        upload_id = f"upload{len(self.shelf.asked)}"
        self.shelf.begun[upload_id] = Begun(key)
        return _xml("InitiateMultipartUploadResult", f"<UploadId>{upload_id}</UploadId>"), 200

    def _UploadPart(self, key: str, query: dict[str, str], body: bytes) -> tuple[bytes, int]:
        upload, number = self._upload(key, query), int(query["partNumber"])
        upload.parts[number] = self.shelf.damage(key, body)
        upload.etags[number] = self.etag = f'"{hashlib.md5(body).hexdigest()}"'
        return b"", 200

    def _CompleteMultipartUpload(self, key: str, query: dict[str, str], body: bytes) -> tuple[bytes, int]:
        upload = self._upload(key, query)
        numbers = [int(number) for number in re.findall(r"<PartNumber>(\d+)</PartNumber>", body.decode())]
        etags = re.findall(r"<ETag>(.*?)</ETag>", body.decode())
        if numbers != list(range(1, len(upload.parts) + 1)):
            raise Refusal(400, "InvalidPartOrder")
        if [unescape(etag) for etag in etags] != [upload.etags[number] for number in numbers]:
            raise Refusal(400, "InvalidPart")
        self.shelf.files[key] = b"".join(upload.parts[number] for number in numbers)
        del self.shelf.begun[query["uploadId"]]
        return _xml("CompleteMultipartUploadResult", ""), 200

    def _ListMultipartUploads(self, key: str, query: dict[str, str], body: bytes) -> tuple[bytes, int]:
        found = "".join(
            f"<Upload><Key>{begun.key}</Key><UploadId>{upload_id}</UploadId>"
            f"<Initiated>2026-11-22T00:00:{number:02d}.000Z</Initiated></Upload>"
            for number, (upload_id, begun) in enumerate(self.shelf.begun.items())
            if begun.key.startswith(query.get("prefix", ""))
        )
        return _xml("ListMultipartUploadsResult", found), 200

    def _ListParts(self, key: str, query: dict[str, str], body: bytes) -> tuple[bytes, int]:
        upload = self._upload(key, query)
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{upload.etags[number]}</ETag><Size>{len(part)}</Size></Part>"
            for number, part in sorted(upload.parts.items())
        )
        return _xml("ListPartsResult", parts), 200

    def _file(self, key: str) -> bytes:
        if key not in self.shelf.files:
            raise Refusal(404, "NoSuchKey")
        return self.shelf.files[key]

    def _upload(self, key: str, query: dict[str, str]) -> Begun:
        begun = self.shelf.begun.get(query["uploadId"])
        if begun is None or begun.key != key:
            raise Refusal(404, "NoSuchUpload")
        return begun

    def _say(self, status: int, body: bytes) -> None:
        self.send_response(status)
        if etag := self.__dict__.pop("etag", ""):
            self.send_header("ETag", etag)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        key = unquote(urlsplit(self.path).path).partition(f"/{VOLUME}/")[2]
        if self.command == "GET" and key in self.shelf.cut:
            self.shelf.cut.remove(key)
            self.wfile.write(body[: len(body) // 2])
            return self._break()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _break(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def _xml(name: str, inside: str) -> bytes:
    return f"<{name}><IsTruncated>false</IsTruncated>{inside}</{name}>".encode()
