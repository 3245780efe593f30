"""The containers of image files: which format a file has, whether it ends early, and what can be made whole again.

One rule for all formats: a file that ends early is read when fewer pixels are missing than one row has.
"""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageChops

from retailray.data.containers import gif, jpeg, lengths, png
from retailray.errors import ImageError

# formats by their names in Pillow; HEIF is read where pillow-heif is installed
SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jfif",
    ".jpe",
    ".png",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".avif",
    ".heic",
    ".heif",
)
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_BMP_HEADERS = tuple(struct.pack("<I", size) for size in (12, 16, 40, 52, 56, 64, 108, 124))
_FILL_BYTES = 1 << 16  # of a JPEG: more than a row of pixels takes
_FILLINGS = 6  # tries, since not every filling decodes


def format_of(data: bytes) -> str | None:
    """Return the format that the first bytes of a file tell (``JPEG``, ``HEIF``, ...); None for no image."""
    for name, signature in (("JPEG", b"\xff\xd8"), ("PNG", b"\x89PNG"), ("GIF", b"GIF8")):
        if data.startswith(signature):
            return name
    if data.startswith(b"BM") and (len(data) < 18 or data[14:18] in _BMP_HEADERS):  # else a text about BMX
        return "BMP"
    if data.startswith((b"II*\0", b"MM\0*")):
        return "TIFF"
    if data.startswith(b"RIFF") and b"WEBP".startswith(data[8:12]):
        return "WEBP"
    if data[4:8] == b"ftyp":
        (size,) = struct.unpack(">I", data[:4])
        brands = {data[at : at + 4] for at in (8, *range(16, min(size, len(data)), 4))}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        return "HEIF" if brands & set(_HEIF_BRANDS) else None
    return None


def ends_early(data: bytes, format: str) -> bool:
    """Return whether a file ends before its container says that it ends (of a GIF: before its first picture does)."""
    try:
        return _ENDS_EARLY[format](data)
    except (struct.error, IndexError):  # it ends within one of the fields that say how long it is
        return True


def completed(data: bytes, format: str, check: Callable[[Image.Image], None]) -> bytes:
    """Return a file that ends early with the few pixels that are missing made up.

    Args:
        check: raises ImageError for a picture, of which only the header is read, that must not be decoded.

    Raises:
        ImageError: ``truncated``, a row of pixels or more is missing; ``corrupt``, it is damaged before its end; and
            what ``check`` raises.
    """
    try:
        if format in _COMPLETE:
            width = _width(data, format, check)
            missing, whole = _COMPLETE[format](data)
        else:
            width, missing, whole = _filled_up(data, format, check)
    except ImageError:
        raise
    except zlib.error as error:
        raise ImageError("corrupt", f"zlib: {error}") from error
    except Exception as error:  # Pillow raises nearly anything for a file that is not whole
        raise ImageError("truncated", f"the {format} file ends early ({type(error).__name__}: {error})") from error
    if missing >= width:
        raise ImageError("truncated", f"the {format} file ends early: {missing} pixels are missing, or more")
    return whole


def _filled_up(data: bytes, format: str, check: Callable[[Image.Image], None]) -> tuple[int, int, bytes]:
    """Return the width, how many pixels are missing, and the file with them made up."""
    if format == "TIFF" and (width := _width_if_whole(data, check)):
        return width, 0, data
    apart = jpeg.pixels_of_missing_intervals(data) if format == "JPEG" else 0
    for attempt in range(_FILLINGS):
        first, second, whole = _filled(data, format, seed=attempt)
        try:
            width = _width(whole, format, check)
            return width, apart + _count_different(first, second), whole
        except ImageError:
            raise
        except Exception:
            if attempt + 1 == _FILLINGS:
                raise
    raise AssertionError("unreachable")


def _width_if_whole(data: bytes, check: Callable[[Image.Image], None]) -> int | None:
    """Return the width of a TIFF that lacks no pixel, whatever else it lacks; ``check`` comes before decoding."""
    try:
        image = Image.open(io.BytesIO(data), formats=["TIFF"])
        check(image)
        image.load()
    except ImageError:
        raise
    except Exception:
        return None
    return image.width


def _width(data: bytes, format: str, check: Callable[[Image.Image], None]) -> int:
    image = Image.open(io.BytesIO(data), formats=[format, "MPO"] if format == "JPEG" else [format])
    check(image)
    return image.width


def _filled(data: bytes, format: str, *, seed: int) -> list[bytes]:
    """Return the file filled up to its length in two ways with random bytes, and last as it is to be read."""
    generator = np.random.default_rng(seed)
    if format == "JPEG":
        if jpeg.lacks_scans(data):
            raise ValueError("scans of a progressive JPEG are missing")
        start, num_bytes, end = data.rstrip(b"\xff"), _FILL_BYTES, b"\xff\xd9"
    else:
        start, num_bytes, end = data, _TOLD_LENGTH[format](data) - len(data), b""
        if num_bytes > len(data):
            raise ValueError(f"{num_bytes} bytes are missing")
    # bytes below 255, which in a JPEG are never a marker
    filled = [start + generator.integers(0, 255, num_bytes, np.uint8).tobytes() + end for _ in range(2)]
    return [*filled, start + end if format == "JPEG" else filled[0]]  # a JPEG continues in its last colour


def _count_different(first: bytes, second: bytes) -> int:
    """Return how many pixels of two files differ: where they were filled up, those that are missing."""
    one, other = (Image.open(io.BytesIO(data)).convert("RGB") for data in (first, second))
    return int(np.asarray(ImageChops.difference(one, other)).any(axis=2).sum())


_TOLD_LENGTH = {
    "WEBP": lengths.webp,
    "BMP": lengths.bmp,
    "TIFF": lengths.tiff,
    "AVIF": lengths.boxes,
    "HEIF": lengths.boxes,
}
_ENDS_EARLY = {
    "JPEG": jpeg.ends_early,
    "PNG": png.ends_early,
    "GIF": gif.ends_early,
    "WEBP": lambda data: lengths.webp(data) > len(data),
    "BMP": lambda data: lengths.bmp(data) > len(data),
    "TIFF": lambda data: lengths.tiff(data) > len(data),
    "AVIF": lambda data: lengths.boxes(data) > len(data),
    "HEIF": lambda data: lengths.boxes(data) > len(data),
}
_COMPLETE = {"PNG": png.complete, "GIF": gif.complete}
