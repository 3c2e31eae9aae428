"""One network volume through RunPod's S3 API: files brought there in parts, resumed, and proven by reading them back.

Knows no models.
"""

import re
from base64 import b64encode
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import md5, sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    PartialCredentialsError,
)
from tqdm import tqdm

from deploy.control.cards import S3_CENTERS
from models.failure import Failure

if TYPE_CHECKING:
    from types_boto3_s3.type_defs import CompletedPartTypeDef

Bar: TypeAlias = "tqdm[NoReturn]"

PART = 64 << 20  # bytes; RunPod takes at most 500 MB at once, and 10,000 parts
AT_ONCE = 4
SENDINGS = 2
READINGS = 3
READ_SECONDS = 60
COMPLETE_SECONDS = 7200  # a file is put together before that call is answered
GONE = ("404", "NoSuchKey", "NotFound", "NoSuchUpload")
KEY = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY take an S3 key of RunPod's console, which is not the API key"
AGAIN = "run it again: it goes on where it was"
HINTS = {
    "403": KEY,
    "AccessDenied": KEY,
    "InvalidAccessKeyId": KEY,
    "SignatureDoesNotMatch": KEY,
    "NoSuchBucket": "there is no such volume in this data center",
    "RequestTimeTooSkewed": "this machine's clock is wrong",
}
REACHED = f"RunPod has this API in {', '.join(sorted(S3_CENTERS))}"


def endpoint_of(data_center: str) -> str:
    """Where the volumes of a data center are reached; Failure where it cannot be the name of one."""
    if not re.fullmatch(r"[A-Za-z]{2,4}(-[A-Za-z0-9]{1,4}){1,3}", data_center):
        raise Failure("upload_failed", "the data center is named like EU-RO-1")
    return f"https://s3api-{data_center.lower()}.runpod.io/"


@dataclass(frozen=True)
class File:
    """A file here, its key there, and what the manifest says of it."""

    path: Path
    key: str
    sha256: str
    bytes: int


@contextmanager
def errors_told() -> Iterator[None]:
    """Give a Failure for what the other side or the way to it refuses; none holds a key or a path."""
    try:
        yield
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise Failure("upload_failed", f"no key is set: {KEY}") from error
    except ClientError as error:
        code = _code(error)
        hint = HINTS.get(code, AGAIN)
        raise Failure("upload_failed", f"the volume refused {error.operation_name} ({code}): {hint}") from error
    except EndpointConnectionError as error:
        raise Failure("upload_failed", f"nothing answers for this data center: {REACHED}") from error
    except (BotoCoreError, OSError) as error:
        why = type(error).__name__
        raise Failure("upload_failed", f"the upload stopped ({why}): {AGAIN}") from error


class Volume:
    """One network volume: a bucket whose keys are the paths of its files."""

    def __init__(self, volume_id: str, data_center: str, endpoint: str) -> None:
        self._bucket = volume_id
        # boto3's own checksums are newer than what many S3 servers know; MD5 all of them do.
        common = Config(
            connect_timeout=10,
            read_timeout=READ_SECONDS,
            retries={"mode": "standard", "max_attempts": 5},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"},
            max_pool_connections=AT_ONCE,
        )
        patient = common.merge(Config(read_timeout=COMPLETE_SECONDS))
        self._s3 = boto3.client("s3", region_name=data_center, endpoint_url=endpoint, config=common)
        self._patient = boto3.client("s3", region_name=data_center, endpoint_url=endpoint, config=patient)
        self._pool = ThreadPoolExecutor(AT_ONCE)

    def __enter__(self) -> "Volume":
        return self

    def __exit__(self, *raised: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._s3.close()
        self._patient.close()

    def bring(self, files: list[File], vouching: Iterable[File] = ()) -> None:
        """Have all of them there, proven; before the first of them is sent, what vouches for them is removed."""
        files = self._lacking(files)
        for _ in range(SENDINGS):
            if not files:
                return
            for file in vouching:
                with _gone_is_well():
                    self._s3.delete_object(Bucket=self._bucket, Key=file.key)
            with show(files, "sending") as bar:
                for file in files:
                    self._send(file, bar)
            files = self._lacking(files)
        if files:
            names = ", ".join(file.path.name for file in files)
            raise Failure("upload_failed", f"sent {SENDINGS} times, and read back it is something else: {names}")

    def point(self, key: str, version: str) -> None:
        """Write `latest`, the name of the version that is taken where none is asked for."""
        body = version.encode()
        self._put(key, body)
        if self._read(key, 0, len(body)) != body:
            raise Failure("upload_failed", "latest is not what was sent")

    def _lacking(self, files: list[File]) -> list[File]:
        """Those that are not there, byte for byte."""
        with show(files, "proving") as bar:
            proven = list(self._pool.map(lambda file: self._holds(file, bar), files))
        return [file for file, holds in zip(files, proven, strict=True) if not holds]

    def _holds(self, file: File, bar: Bar) -> bool:
        try:
            there = self._s3.head_object(Bucket=self._bucket, Key=file.key)["ContentLength"]
        except ClientError as error:
            if _code(error) in GONE:
                return False
            raise
        if there != file.bytes:
            return False
        seen = sha256()
        for start in range(0, file.bytes, PART):
            body = self._read(file.key, start, min(start + PART, file.bytes))
            seen.update(body)
            bar.update(len(body))
        return seen.hexdigest() == file.sha256

    def _read(self, key: str, start: int, end: int) -> bytes:
        """These bytes of a file there. boto3 tries everything again but a body that breaks off."""
        for left in reversed(range(READINGS)):
            try:
                body = self._s3.get_object(Bucket=self._bucket, Key=key, Range=f"bytes={start}-{end - 1}")["Body"]
                return body.read()
            except BotoCoreError:
                if not left:
                    raise
        raise AssertionError("unreachable")

    def _send(self, file: File, bar: Bar) -> None:
        if file.bytes <= PART:
            self._put(file.key, file.path.read_bytes())
            bar.update(file.bytes)
            return
        upload_id = self._begun(file.key)
        there = self._parts(file.key, upload_id)
        numbers = range(1, -(-file.bytes // PART) + 1)
        parts = list(self._pool.map(lambda number: self._send_part(file, upload_id, number, there, bar), numbers))
        with _gone_is_well():  # done by a call whose answer was lost; the proof will tell
            self._patient.complete_multipart_upload(
                Bucket=self._bucket, Key=file.key, UploadId=upload_id, MultipartUpload={"Parts": parts}
            )

    def _put(self, key: str, body: bytes) -> None:
        self._s3.put_object(Bucket=self._bucket, Key=key, Body=body, ContentMD5=b64encode(_md5(body)).decode())

    def _send_part(
        self, file: File, upload_id: str, number: int, there: dict[int, tuple[str, int]], bar: Bar
    ) -> "CompletedPartTypeDef":
        """Send it unless it is there: the ETag of a part is its MD5."""
        with file.path.open("rb") as opened:
            opened.seek((number - 1) * PART)
            body = opened.read(PART)
        digest = _md5(body)
        etag = f'"{digest.hex()}"'
        if there.get(number) != (etag, len(body)):
            where: Any = {"Bucket": self._bucket, "Key": file.key, "UploadId": upload_id, "PartNumber": number}
            etag = self._s3.upload_part(**where, Body=body, ContentMD5=b64encode(digest).decode())["ETag"]
        bar.update(len(body))
        return {"PartNumber": number, "ETag": etag}

    def _begun(self, key: str) -> str:
        """The upload of this file that was begun last, else a new one."""
        pages = self._s3.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket, Prefix=key)
        with _gone_is_well():  # as some servers say where nothing was ever begun
            begun = [each for page in pages for each in page.get("Uploads", []) if each["Key"] == key]
            if begun:
                return max(begun, key=lambda each: each["Initiated"])["UploadId"]
        return self._s3.create_multipart_upload(Bucket=self._bucket, Key=key)["UploadId"]

    def _parts(self, key: str, upload_id: str) -> dict[int, tuple[str, int]]:
        """ETag and size of each part that is there, by number."""
        pages = self._s3.get_paginator("list_parts").paginate(Bucket=self._bucket, Key=key, UploadId=upload_id)
        found = [each for page in pages for each in page.get("Parts", [])]
        return {each["PartNumber"]: (each["ETag"], each["Size"]) for each in found}


def show(files: list[File], doing: str) -> Bar:
    """How much of their bytes has been done, on a terminal alone."""
    total = sum(file.bytes for file in files)
    return tqdm(total=total, unit="B", unit_scale=True, desc=doing, disable=None)


def _md5(body: bytes) -> bytes:
    return md5(body, usedforsecurity=False).digest()


def _code(error: ClientError) -> str:
    return error.response.get("Error", {}).get("Code", "")


@contextmanager
def _gone_is_well() -> Iterator[None]:
    """Of what is to be gone, that it is gone already is no error."""
    try:
        yield
    except ClientError as error:
        if _code(error) not in GONE:
            raise
