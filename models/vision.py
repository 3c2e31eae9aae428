"""Data URLs made pictures: each checked before it is decoded, and decoded in a process of its own. Nothing is fetched.

Knows no prompts and no network. A message says what is wrong with which image, never what a library says of it.
"""

import asyncio
import base64
import json
import re
import sys
import threading
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen

import numpy as np
from numpy.typing import NDArray
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from models import decoding
from models.failure import Failure
from models.picture import Picture

MOST = 4  # of a request
MOST_BYTES = 5 << 20
MOST_PIXELS = 4096 * 4096
LEAST_SIDE = 4
MOST_ASPECT = 200  # smart_resize takes no more
FEW = 256  # tokens
LEAST_PIXELS = 56 * 56  # as Qwen2.5-VL was trained
SECONDS = 20.0  # for one image, most of it spent waiting for a processor
MAGIC = re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF....WEBP", re.DOTALL)
URL = re.compile(r"data:image/(?:png|jpe?g|webp);base64,", re.IGNORECASE)
# As many files are decoded at once; a thread waits for each, and no thread that closes answers.
DECODERS = ThreadPoolExecutor(2, "decode")
UNKNOWN = "it is no PNG, JPEG or WebP image"
PREPARATION = ("do_rescale", "do_normalize", "rescale_factor", "image_mean", "image_std", "resample")


class Vision:
    """How a model is shown images: in squares of `side` pixels, at most `tokens` of them each (at least 200, so that
    the longest strip has no more)."""

    def __init__(self, side: int, tokens: int) -> None:
        self.side, self._tokens = side, tokens

    async def read(self, urls: Mapping[str, str], few: Collection[str] = ()) -> list[Picture]:
        """A picture of each, whose name is told where it is refused; whoever leaves waits for none. Those that are
        named in `few` have no more than FEW tokens."""
        loop = asyncio.get_running_loop()
        reading = [loop.run_in_executor(DECODERS, self._read, name, url, name in few) for name, url in urls.items()]
        try:
            return list(await asyncio.gather(*reading))
        finally:
            for each in reading:
                each.cancel()

    def _read(self, name: str, url: str, few: bool) -> Picture:
        tokens = min(self._tokens, FEW) if few else self._tokens
        return Picture(self._decode(name, unwrap(name, url), tokens), self.side)

    def _decode(self, name: str, data: bytes, tokens: int) -> NDArray[np.uint8]:
        """RGB [height, width, 3], of the size at which it is read; Failure where there is none to be had."""
        damaged = Failure("image_unprocessable", f"{name}: the image is damaged, or takes too much to decode")
        command = [sys.executable, "-I", decoding.__file__]
        try:
            with Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env={}) as process, _killed(process):
                assert process.stdin is not None and process.stdout is not None
                process.stdin.write(f"{len(data):08}".encode() + data)
                process.stdin.flush()
                width, height = self._fit(name, process.stdout.readline(64).split(), tokens, damaged)
                process.stdin.write(f"{width} {height}\n".encode())
                process.stdin.flush()
                shape = [int(size) for size in process.stdout.readline(64).split()]
                made = process.stdout.read(width * height * 3)
                return np.frombuffer(made, np.uint8).reshape(shape[1], shape[0], 3)
        except (BrokenPipeError, ValueError, IndexError):  # it has ended before it had read or told all
            raise damaged from None

    def _fit(self, name: str, header: list[bytes], tokens: int, damaged: Failure) -> tuple[int, int]:
        """Width and height at which an image is read, from what its header tells; Failure where it is not to be."""
        if not header:
            raise damaged
        if header == [b"none"]:
            raise Failure("invalid_image", f"{name}: {UNKNOWN}")
        width, height, frames = map(int, header[1:])
        if frames != 1:
            raise Failure("invalid_image", f"{name}: the image has {frames} frames; one is allowed")
        if width * height > MOST_PIXELS:
            raise Failure("invalid_image", f"{name}: the image has {width * height} pixels; {MOST_PIXELS} are allowed")
        if min(width, height) < LEAST_SIDE:
            raise Failure("invalid_image", f"{name}: a side of the image is shorter than {LEAST_SIDE} pixels")
        if max(width, height) >= MOST_ASPECT * min(width, height):
            raise Failure("invalid_image", f"{name}: the image is {MOST_ASPECT} times as long as wide, or more")
        most = tokens * self.side * self.side
        down, across = smart_resize(height, width, self.side, min_pixels=LEAST_PIXELS, max_pixels=most)
        return across, down


@contextmanager
def _killed(process: "Popen[bytes]") -> Iterator[None]:
    """Come what may, it does not outlive this block, nor SECONDS."""
    timer = threading.Timer(SECONDS, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        process.kill()


def check(urls: Mapping[str, object]) -> dict[str, str]:
    """The same, where as many data URLs of no more than their size are there; takes no look into them. Failure names
    the first that is none."""
    if len(urls) > MOST:
        raise Failure("invalid_image", f"{next(iter(urls))}: a request may have {MOST} images, this one {len(urls)}")
    found: dict[str, str] = {}
    for name, url in urls.items():
        if not isinstance(url, str) or not URL.match(url):
            raise Failure(
                "invalid_image", f"{name}: an image is a data URL in base64 of PNG, JPEG or WebP; nothing is fetched"
            )
        if len(url) > MOST_BYTES * 4 / 3 + 64:
            raise Failure("invalid_image", f"{name}: the image has more than {MOST_BYTES} bytes")
        found[name] = url
    return found


def unwrap(name: str, url: str) -> bytes:
    """The bytes in a data URL; Failure where they are not base64, too many, or begin as no image does."""
    try:
        data = base64.b64decode(url.partition(",")[2], validate=True)
    except ValueError:
        raise Failure("invalid_image", f"{name}: the data URL is not valid base64") from None
    if len(data) > MOST_BYTES:
        raise Failure("invalid_image", f"{name}: the image has more than {MOST_BYTES} bytes")
    if not MAGIC.match(data):
        raise Failure("invalid_image", f"{name}: {UNKNOWN}")
    return data


def check_preparation(file: Path) -> None:
    """Failure where a checkpoint's images are to be made patches otherwise than transformers does it by itself."""
    try:
        told = json.loads(file.read_text()) if file.exists() else {}
    except (OSError, ValueError) as error:
        raise Failure("source_invalid", f"{file.name} is not JSON") from error
    ours = json.loads(Qwen2VLImageProcessorPil().to_json_string())
    for key in PREPARATION:
        if key in told and told[key] != ours[key]:
            raise Failure("source_invalid", f"{file.name} holds another {key} than is known")
