"""An image file made pixels: run as a program of its own, which may take so much memory and time and no more.

Imports nothing of ours, so that it starts in a twentieth of a second: a decoder that crashes or runs away takes nobody
with it. On standard input the file's length, 8 digits, and the file; on standard output one line "format width height
frames", or "none"; then on standard input "width height" as wanted of the file's own orientation, and on standard
output "width height" of the image as it is to be seen, and its pixels, RGB.
"""

import resource
import sys
from io import BytesIO

# Pillow looks for formats that it has not met in all of its forty plugins.
from PIL import Image, ImageOps, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

FILES = (PngImagePlugin.PngImageFile, JpegImagePlugin.JpegImageFile, WebPImagePlugin.WebPImageFile)
MEMORY = 512 << 20  # bytes, of address space: 16 megapixels of any format take less
SECONDS = 10  # of a processor
TURNED = range(5, 9)  # orientations in EXIF that swap width and height


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    Image.MAX_IMAGE_PIXELS = None  # whoever reads our line judges
    given, taken = sys.stdin.buffer, sys.stdout.buffer
    data = BytesIO(given.read(int(given.read(8))))
    try:
        image = Image.open(data, formats=[each.format for each in FILES])
    except Exception:  # of many kinds: what is wrong with a header is not told
        taken.write(b"none\n")
        return
    # The second picture of a JPEG file is no frame, but what a phone has put beside the first.
    frames = 1 if image.format in ("JPEG", "MPO") else getattr(image, "n_frames", 1)
    taken.write(f"{image.format} {image.width} {image.height} {frames}\n".encode())
    taken.flush()
    wanted = given.readline().split()
    if wanted:
        made = develop(image, int(wanted[0]), int(wanted[1]))
        taken.write(f"{made.width} {made.height}\n".encode() + made.tobytes())


def develop(image: Image.Image, width: int, height: int) -> Image.Image:
    """The image as it is to be seen, made `width` by `height` of the file's own orientation."""
    image.load()
    try:
        orientation = image.getexif().get(0x0112, 1)
        upright = ImageOps.exif_transpose(image)
    except Exception:  # EXIF that cannot be read says nothing
        orientation, upright = 1, image
    size = (height, width) if orientation in TURNED else (width, height)
    return flatten(upright).resize(size, Image.Resampling.BICUBIC)


def flatten(image: Image.Image) -> Image.Image:
    """RGB, on white where one can see through it. Colours are taken as sRGB."""
    if image.mode.startswith("I"):  # 16 bits of grey, of which a conversion would take the lower ones
        return image.convert("I").point(lambda grey: grey / 256).convert("L").convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    seen = image.convert("RGBA")
    paper = Image.new("RGB", seen.size, "white")
    paper.paste(seen, mask=seen.getchannel("A"))
    return paper


if __name__ == "__main__":
    main()
