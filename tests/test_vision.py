"""models/vision.py and models/decoding.py: what becomes of images, good and hostile."""

import asyncio
import base64
import io
import random
import struct
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image, ImageChops, ImageOps
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from models import decoding, vision
from models.failure import Failure
from models.picture import Picture
from models.vision import Vision

EYES = Vision(28, 1280)
RED, WHITE = (255, 0, 0), (255, 255, 255)


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Smooth enough for JPEG."""
    small = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def save(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def read(*files: bytes, eyes: Vision = EYES) -> list[Picture]:
    return asyncio.run(eyes.read(vision.check({f"images.{at}": url(file) for at, file in enumerate(files)})))


def refused(*files: bytes) -> tuple[str, str]:
    with pytest.raises(Failure) as failure:
        read(*files)
    return failure.value.code, failure.value.message


def colour(file: bytes, x: int = 14, y: int = 14) -> tuple[int, ...]:
    """Of one place, where what is read is as large as the file's image."""
    return tuple(read(file)[0].pixels[y, x].tolist())


@pytest.mark.parametrize("size", [(56, 56), (300, 200), (1700, 2200), (4, 30), (2000, 15), (29, 3000)])
def test_what_is_read_becomes_the_patches_of_transformers_own_processor(size: tuple[int, int]) -> None:
    image = noise(*size)
    (picture,) = read(save(image))
    theirs = Qwen2VLImageProcessorPil(max_pixels=1280 * 28 * 28)(image, return_tensors="pt")
    ours = Qwen2VLImageProcessorPil(do_resize=False)(
        picture.pixels, input_data_format="channels_last", return_tensors="pt"
    )
    assert theirs["image_grid_thw"].tolist() == [[1, 2 * picture.rows, 2 * picture.columns]]
    assert (ours["pixel_values"] == theirs["pixel_values"]).all()
    assert 4 <= picture.tokens <= 1280


@pytest.mark.parametrize("tokens", [200, 1280, 4096])
@pytest.mark.parametrize("size", [(4000, 4000), (4096, 21), (3000, 40)])
def test_no_image_has_more_tokens_than_it_may(tokens: int, size: tuple[int, int]) -> None:
    assert read(save(Image.new("L", size)), eyes=Vision(28, tokens))[0].tokens <= tokens


def test_an_image_of_few_tokens_is_the_same_made_smaller() -> None:
    file = url(save(noise(900, 700)))
    large, small = asyncio.run(EYES.read({"a": file, "b": file}, few={"b"}))
    assert small.tokens <= vision.FEW < large.tokens
    assert small.id == read(save(noise(900, 700)), eyes=Vision(28, vision.FEW))[0].id


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_formats(kind: str) -> None:
    image = noise(84, 56)
    options = {"lossless": True} if kind == "WEBP" else {}
    (picture,) = read(save(image, kind, **options))
    difference = np.abs(picture.pixels.astype(int) - np.asarray(image).astype(int))
    assert picture.pixels.shape == (56, 84, 3)
    assert difference.max() <= (40 if kind == "JPEG" else 0)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP", "ICO", "PPM", "TGA", "JPEG2000", "PCX", "DDS", "SGI"])
def test_other_formats_are_none(kind: str) -> None:
    assert refused(save(noise(64, 64), kind)) == ("invalid_image", "images.0: it is no PNG, JPEG or WebP image")


def test_the_same_pixels_are_the_same_picture_whatever_file_holds_them() -> None:
    image = noise(84, 56)
    one, two, three = read(save(image), save(image, compress_level=1), save(image, "WEBP", lossless=True))
    assert one.id == two.id == three.id


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
def test_modes_keep_their_colours(mode: str) -> None:
    grey = mode in ("1", "L", "LA", "I;16")
    if mode == "I;16":
        image = Image.fromarray(np.full((56, 56), 0x8000, np.uint16))
    else:
        image = Image.new("RGB", (56, 56), (128, 128, 128) if grey else RED).convert("L" if grey else "RGB")
        image = image.point(lambda _: 255).convert("1") if mode == "1" else image.convert(mode)
    found = colour(save(image, "JPEG" if mode == "CMYK" else "PNG"))
    assert found == pytest.approx((255,) * 3 if mode == "1" else (128,) * 3 if grey else RED, abs=3)


@pytest.mark.parametrize("kind", ["alpha", "palette", "colour key", "webp"])
def test_what_can_be_seen_through_stands_on_white(kind: str) -> None:
    image = Image.new("RGBA", (56, 56), (255, 0, 0, 255))
    image.paste((0, 0, 255, 0), (0, 0, 28, 28))
    if kind == "colour key":
        file = save(Image.new("RGB", (56, 56), RED), transparency=RED)
    elif kind == "palette":
        indexed = Image.new("P", (56, 56), 0)
        indexed.putpalette([255, 0, 0, 0, 255, 0])
        file = save(indexed, transparency=0)
    else:
        file = save(image, "WEBP", lossless=True) if kind == "webp" else save(image)
    assert colour(file) == WHITE
    if kind in ("alpha", "webp"):
        assert colour(file, 42, 42) == RED


@pytest.mark.parametrize(
    ("kind", "orientation"), [*[("JPEG", number) for number in range(1, 9)], ("PNG", 3), ("PNG", 6), ("WEBP", 8)]
)
def test_orientation_is_honoured(kind: str, orientation: int) -> None:
    image = noise(112, 56)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = save(image, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(file))).convert("RGB")
    (picture,) = read(file)
    assert (picture.rows, picture.columns) == ((2, 4) if orientation < 5 else (4, 2))
    assert ImageChops.difference(Image.fromarray(picture.pixels), upright).getbbox() is None


@pytest.mark.parametrize(
    ("size", "why"),
    [
        ((4097, 4096), "the image has 16781312 pixels; 16777216 are allowed"),
        ((3, 100), "a side of the image is shorter than 4 pixels"),
        ((1, 1), "a side of the image is shorter than 4 pixels"),
        ((4, 800), "the image is 200 times as long as wide, or more"),
    ],
)
def test_sizes_are_bounded(size: tuple[int, int], why: str) -> None:
    assert refused(save(Image.new("L", size))) == ("invalid_image", f"images.0: {why}")


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_what_moves_is_refused(kind: str) -> None:
    file = save(noise(64, 64), kind, save_all=True, append_images=[noise(64, 64, seed=1)])
    assert refused(file) == ("invalid_image", "images.0: the image has 2 frames; one is allowed")


def test_of_a_phones_two_pictures_the_first_is_read() -> None:
    file = save(noise(84, 56), "MPO", save_all=True, append_images=[noise(84, 56, seed=1)])
    assert read(file)[0].id == read(save(noise(84, 56), "JPEG"))[0].id


def test_the_first_that_cannot_be_read_is_named() -> None:
    assert refused(save(noise(64, 64)), b"no image", save(noise(64, 64)))[1].startswith("images.1: ")


@pytest.mark.parametrize(
    "bad",
    [
        "http://example.org/a.png",
        "file:///etc/passwd",
        "data:image/gif;base64,R0lGOD",
        "data:image/svg+xml;base64,PHN2Zz4=",
        "data:text/html;base64,aGk=",
        "data:image/png,abc",
        " data:image/png;base64,aaaa",
        "",
        b"data:image/png;base64,",
        None,
        ["data:image/png;base64,aaaa"],
    ],
)
def test_what_is_no_data_url_is_refused_before_it_is_read(bad: Any) -> None:
    with pytest.raises(Failure) as failure:
        vision.check({"a.0": url(b"x"), "a.1": bad})
    assert failure.value.code == "invalid_image"
    assert failure.value.message.startswith("a.1: an image is a data URL")


@pytest.mark.parametrize("tail", ["a", "aa", "aaa", "aa==aaaa", "aa\naa", "aa aa", "aé==", "a-_a", "%61aaa"])
def test_base64_is_read_strictly(tail: str) -> None:
    with pytest.raises(Failure, match="not valid base64"):
        vision.unwrap("a", f"data:image/png;base64,{tail}")


def test_bytes_are_bounded() -> None:
    most = b"\xff\xd8\xff".ljust(vision.MOST_BYTES)
    assert vision.unwrap("a", vision.check({"a": url(most)})["a"]) == most
    with pytest.raises(Failure, match="more than 5242880 bytes"):
        vision.unwrap("a", url(most + b"0"))
    with pytest.raises(Failure, match="more than 5242880 bytes"):
        vision.check({"a": url(most + bytes(100))})


def test_a_decoder_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(decoding, "__file__", str(slow))
    monkeypatch.setattr(vision, "SECONDS", 0.3)
    began = time.monotonic()
    assert refused(save(noise(64, 64)))[0] == "image_unprocessable"
    assert time.monotonic() - began < 20
    assert not [child for child in psutil.Process().children() if str(slow) in child.cmdline()]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "progressive", "CMYK", "RGBA"])
def test_the_largest_image_of_each_kind_is_read_within_the_bound(kind: str) -> None:
    image = Image.new({"CMYK": "CMYK", "RGBA": "RGBA"}.get(kind, "RGB"), (4096, 4096))
    if kind in ("progressive", "CMYK"):
        file = save(image, "JPEG", progressive=True)
    else:
        file = save(image, {"RGBA": "PNG"}.get(kind, kind), **({"method": 0} if kind == "WEBP" else {}))
    assert read(file)[0].tokens <= 1280


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colours: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


def hostile() -> list[bytes]:
    """Some 330 files that nobody sends in good faith, always the same."""
    draw = random.Random(7)
    good = [
        save(noise(200, 120)),
        save(noise(200, 120), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08" + bytes(20)),
        save(noise(200, 120), "JPEG", progressive=True),
        save(noise(200, 120), "WEBP"),
        save(noise(200, 120), "WEBP", lossless=True),
        save(noise(200, 120, "P")),
        save(noise(200, 120, "RGBA"), icc_profile=bytes(range(256)) * 4),
    ]
    files = [each[: draw.randrange(len(each))] for each in good for _ in range(15)]
    for each in good:
        for flips in (1, 1, 2, 4, 8, 16, 64, 256) * 2:
            broken = bytearray(each)
            for _ in range(flips):
                broken[draw.randrange(min(len(each), 400 if flips < 8 else len(each)))] ^= 1 << draw.randrange(8)
            files.append(bytes(broken))
    rows = zlib.compress(bytes(1 << 20))
    sizes = ((0, 0), (0, 9), (9, 0), (2**31 - 1, 2**31 - 1), (2**31, 1), (60_000, 60_000), (13_300, 13_300))
    files += [png(width, height, chunk(b"IDAT", rows)) for width, height in sizes]
    bomb = zlib.compress(bytes(200 << 20), 9)
    files += [
        png(4096, 4096, chunk(b"IDAT", bomb)),  # more than it says
        png(64, 64, chunk(b"IDAT", bomb)),
        png(64, 64, chunk(b"zTXt", b"a\0\0" + bomb), chunk(b"IDAT", zlib.compress(bytes(64 * 193)))),
        png(64, 64, chunk(b"iCCP", b"a\0\0" + bomb), chunk(b"IDAT", zlib.compress(bytes(64 * 193)))),
        png(64, 64, chunk(b"iTXt", b"a\0\1\0\0\0" + bomb), chunk(b"IDAT", zlib.compress(bytes(64 * 193)))),
        png(64, 64, chunk(b"eXIf", bytes(50_000)), chunk(b"IDAT", zlib.compress(bytes(64 * 193)))),
        png(64, 64, chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)), chunk(b"IDAT", rows)),
        png(64, 64, *[chunk(b"tEXt", b"a\0b")] * 50_000, chunk(b"IDAT", rows)),
        png(64, 64, chunk(b"IDAT", rows), depth=16, colours=7),
        png(64, 64),
    ]
    magic = [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\xff\xff\xff\xffWEBPVP8X", b"GIF89a", b"BM"]
    magic += [b"II*\0", b"%PDF-1.7\n", b"PK\3\4", b"<svg>", b"#!/bin/sh\n", b"8BPS", b"\0\0\0\x0cjP  ", b"qoif"]
    files += [head + draw.randbytes(size) for head in magic for size in (0, 1, 40, 3000)]
    for size in (2**14, 2**24 - 1):
        large = b"VP8X" + struct.pack("<IB", 10, 0) + bytes(3) + struct.pack("<I", size)[:3] * 2
        files.append(b"RIFF" + struct.pack("<I", len(large) + 4) + b"WEBP" + large)
    files += [good[0] + draw.randbytes(5000), good[1] + b"PK\3\4" + bytes(99), b"GIF89a" + good[0], good[0] + good[1]]
    for width, height in ((65_535, 65_535), (0, 0), (1, 65_535)):
        at = good[1].index(b"\xff\xc0") + 5
        files.append(good[1][:at] + struct.pack(">HH", height, width) + good[1][at + 4 :])
    moving = dict(save_all=True, append_images=[noise(8, 8, seed=each) for each in range(20)])
    files += [save(noise(8, 8), kind, **moving) for kind in ("PNG", "WEBP", "GIF")]
    files += [save(noise(40, 40), "JPEG", exif=b"Exif\0\0" + draw.randbytes(size)) for size in range(1, 60_000, 6000)]
    files += [save(noise(40, 40), "JPEG", icc_profile=draw.randbytes(size)) for size in range(1, 60_000, 6000)]
    return files


def test_hostile_images_are_answered_or_refused_and_nothing_is_left_of_them() -> None:
    files = hostile()
    assert len(files) > 300

    async def one(file: bytes) -> str:
        try:
            (picture,) = await EYES.read({"images.0": url(file)})
        except Failure as failure:
            assert failure.message.startswith("images.0: ") and "0x" not in failure.message
            return failure.code
        assert 4 <= picture.tokens <= 1280
        return "read"

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*map(one, files))

    process = psutil.Process()
    before = process.memory_info().rss
    counted = Counter(asyncio.run(all_of_them()))
    assert counted.keys() == {"read", "invalid_image", "image_unprocessable"}
    assert min(counted.values()) > 20
    assert process.memory_info().rss - before < 256 << 20
    assert not [child for child in process.children() if "decoding.py" in " ".join(child.cmdline())]


def test_a_checkpoint_with_other_patches_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "preprocessor_config.json"
    vision.check_preparation(file)
    file.write_text('{"image_mean": [0.48145466, 0.4578275, 0.40821073], "max_pixels": 12845056, "do_rescale": true}')
    vision.check_preparation(file)
    for text, why in (
        ('{"image_mean": [0.5, 0.5, 0.5]}', "preprocessor_config.json holds another image_mean than is known"),
        ('{"rescale_factor": 1}', "preprocessor_config.json holds another rescale_factor than is known"),
        ("{", "preprocessor_config.json is not JSON"),
    ):
        file.write_text(text)
        with pytest.raises(Failure) as failure:
            vision.check_preparation(file)
        assert (failure.value.code, failure.value.message) == ("source_invalid", why)
