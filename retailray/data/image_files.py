"""The containers of image files: which format a file has, whether it ends early, and what can be made whole again.

One rule for all formats: a file that ends early is read when fewer pixels are missing than one row has.
"""

import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageChops

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
_JPEG_MARKER = re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]")  # in entropy-coded data, neither stuffing nor a restart
_PNG_SIGNATURE, _PNG_END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"
# chunks that say nothing about pixels as we show them; Pillow refuses a file whose text or profile is large
_PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
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


def without_text(data: bytes) -> bytes:
    """Return a PNG without its texts and its colour profile, which no pixel of ours depends on."""
    if not any(name in data for name in _PNG_TEXT):
        return data
    kept = [data[: len(_PNG_SIGNATURE)]]
    kept += [data[start:stop] for name, start, stop in _png_chunks(data) if name not in _PNG_TEXT]
    return b"".join(kept)


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
    apart = _pixels_of_missing_intervals(data) if format == "JPEG" else 0
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


# -- JPEG -----------------------------------------------------------------------------------------------------------


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start of its content and end of its content. Ends without an end marker where the file does."""
    at = 2
    while at < len(data):
        found = _JPEG_MARKER.match(data, at)
        if not found:
            if data[at : at + 2].strip(b"\xff"):
                raise ValueError("it is damaged: there is no marker where one has to be")
            return
        at = found.end()
        marker = data[at - 1]
        if marker == 0xD9:
            yield marker, at, at
            return
        stop = at + struct.unpack(">H", data[at : at + 2])[0]
        if stop > len(data):
            return
        yield marker, at + 2, stop
        if marker == 0xDA:  # entropy-coded data follows
            following = _JPEG_MARKER.search(data, stop)
            if not following:
                return
            stop = following.start()
        at = stop


def _jpeg_ends_early(data: bytes) -> bool:
    if data.endswith(b"\xff\xd9"):
        return False
    try:
        markers = [marker for marker, _, _ in _jpeg_segments(data)]
    except ValueError:
        return False
    return not markers or markers[-1] != 0xD9


def _lacks_scans(data: bytes) -> bool:
    """Return whether a progressive JPEG has coefficients whose last bits no scan brings."""
    components: list[int] = []
    bits: dict[tuple[int, int], int] = {}
    for marker, start, stop in _jpeg_segments(data):
        if marker == 0xC2:
            components = [data[at] for at in range(start + 6, stop, 3)]
        elif marker == 0xDA and components:
            count = data[start]
            first, last, low = data[stop - 3], data[stop - 2], data[stop - 1] & 15
            for number in range(count):
                bits |= dict.fromkeys(((data[start + 1 + 2 * number], k) for k in range(first, last + 1)), low)
    return any(bits.get((component, k), 1) for component in components for k in range(64))


def _pixels_of_missing_intervals(data: bytes) -> int:
    """Return the pixels of the restart intervals of a JPEG that are not there at all.

    A decoder that finds no restart marker leaves them grey whatever follows, so that no filling shows them.
    """
    interval, width, height, factors, scan, components = 0, 0, 0, [(1, 1)], len(data), 1
    for marker, start, stop in _jpeg_segments(data):
        if marker == 0xDD:
            (interval,) = struct.unpack(">H", data[start : start + 2])
        elif marker in (0xC0, 0xC1, 0xC2):
            height, width = struct.unpack(">HH", data[start + 1 : start + 5])
            factors = [(data[at] >> 4, data[at] & 15) for at in range(start + 7, stop, 3)]
        elif marker == 0xDA:
            scan, components = stop, data[start]
    if not interval:
        return 0
    across, down = (max(factor[axis] for factor in factors) for axis in (0, 1))
    if components == 1:  # a scan of one component has blocks for units
        across = down = 1
    units = -(-width // (8 * across)) * -(-height // (8 * down))
    found = len(re.findall(rb"\xff[\xd0-\xd7]", data[scan:])) + 1
    return max(0, -(-units // interval) - found) * interval * 64 * across * down


# -- PNG ------------------------------------------------------------------------------------------------------------


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and end of every chunk, header and checksum included; the last one may be cut."""
    at = len(_PNG_SIGNATURE)
    while at + 8 <= len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        stop = min(at + 12 + length, len(data))
        yield name, at, stop
        at = stop


def _png_ends_early(data: bytes) -> bool:
    if data.endswith(_PNG_END):
        return False
    names = [name for name, _, _ in _png_chunks(data)]
    return b"IEND" not in names and all(name.isalpha() for name in names)  # else it is damaged


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _complete_png(data: bytes) -> tuple[int, bytes]:
    chunks = [(name, data[start:stop]) for name, start, stop in _png_chunks(data)]
    width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[0][1][8:21])
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    passes = [(0, 0, 1, 1)]
    if interlaced:  # Adam7: first column and row, and steps between them
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    expected = 0
    for x, y, dx, dy in passes:
        columns, rows = -(-max(0, width - x) // dx), -(-max(0, height - y) // dy)
        expected += rows * (1 + -(-columns * bits // 8)) if columns else 0
    packed = b""
    for name, chunk in chunks:
        if name == b"IDAT":
            (length,) = struct.unpack(">I", chunk[:4])
            packed += chunk[8 : 8 + length]
    pixels = zlib.decompressobj().decompress(packed, expected)
    missing = -(-(expected - len(pixels)) * 8 // bits)
    before = [chunk for name, chunk in chunks if name not in (b"IDAT", b"IEND")]
    parts = [_PNG_SIGNATURE, *before, _chunk(b"IDAT", zlib.compress(pixels.ljust(expected, b"\0"), 1)), _PNG_END]
    return missing, b"".join(parts)


# -- GIF ------------------------------------------------------------------------------------------------------------


def _gif_picture(data: bytes) -> tuple[int, int]:
    """Return where the first picture's descriptor and its compressed data begin. Raises IndexError."""

    def table(flags: int) -> int:
        return 3 << ((flags & 7) + 1) if flags & 0x80 else 0

    at = 13 + table(data[10])
    while data[at] == 0x21:
        at += 2
        while data[at]:
            at += data[at] + 1
        at += 1
    if data[at] != 0x2C:
        raise ValueError("it holds no picture")
    return at, at + 10 + table(data[at + 9])


def _sub_blocks(data: bytes, at: int) -> tuple[bytes, bool]:
    """Return the content of a chain of sub-blocks, as far as it is there, and whether the chain has its end."""
    parts: list[bytes] = []
    while at < len(data):
        size = data[at]
        if not size:
            return b"".join(parts), True
        parts.append(data[at + 1 : at + 1 + size])
        at += 1 + size
    return b"".join(parts), False


def _gif_ends_early(data: bytes) -> bool:
    try:
        _, start = _gif_picture(data)
    except ValueError:
        return False
    return not _sub_blocks(data, start + 1)[1]


def _complete_gif(data: bytes) -> tuple[int, bytes]:
    descriptor, start = _gif_picture(data)
    width, height = struct.unpack("<HH", data[descriptor + 5 : descriptor + 9])
    packed, _ = _sub_blocks(data, start + 1)
    if data[start] > 11:
        raise ImageError("corrupt", f"LZW codes begin with {data[start]} bits, and have 12 at most")
    missing = max(0, width * height - _lzw_length(packed, data[start]))
    packed += bytes(2 + missing * 12 // 8)  # code 0 is always the first colour
    blocks = [packed[at : at + 255] for at in range(0, len(packed), 255)]
    return missing, data[: start + 1] + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0;"


def _lzw_length(packed: bytes, code_size: int) -> int:
    """Return how many pixels LZW codes stand for (GIF89a, appendix F)."""
    clear = 1 << code_size
    lengths: list[int] = []
    bits, held, at, total, before = code_size + 1, 0, 0, 0, 0
    buffer = 0
    while True:
        while held < bits:
            if at == len(packed):
                return total
            buffer |= packed[at] << held
            held, at = held + 8, at + 1
        code = buffer & ((1 << bits) - 1)
        buffer, held = buffer >> bits, held - bits
        if code == clear:
            lengths, bits, before = [1] * clear + [0, 0], code_size + 1, 0
            continue
        if code == clear + 1 or not lengths or code > len(lengths):
            return total
        length = lengths[code] if code < len(lengths) else before + 1
        total += length
        if before and len(lengths) < 4096:
            lengths.append(before + 1)
            if len(lengths) == 1 << bits and bits < 12:
                bits += 1
        before = length


# -- WebP, BMP, TIFF, AVIF and HEIF: a length that the file itself tells ------------------------------------------


def _told_length_webp(data: bytes) -> int:
    return 8 + struct.unpack("<I", data[4:8])[0]


def _told_length_bmp(data: bytes) -> int:
    size, offset = struct.unpack("<I4xI", data[2:14])
    width, height, depth, compression = struct.unpack("<ii2xHI", data[18:34])
    return offset + abs(height) * ((width * depth + 31) // 32 * 4) if compression in (0, 3) else size


def _told_length_tiff(data: bytes) -> int:
    order = "<" if data.startswith(b"II") else ">"
    (ifd,) = struct.unpack(f"{order}I", data[4:8])
    (count,) = struct.unpack(f"{order}H", data[ifd : ifd + 2])
    values: dict[int, list[int]] = {}
    for at in range(ifd + 2, ifd + 2 + 12 * count, 12):
        tag, kind, number = struct.unpack(f"{order}HHI", data[at : at + 8])
        if tag in (273, 279, 324, 325) and kind in (3, 4):
            code, width = ("H", 2) if kind == 3 else ("I", 4)
            start = at + 8 if number * width <= 4 else struct.unpack(f"{order}I", data[at + 8 : at + 12])[0]
            values[tag] = list(struct.unpack(f"{order}{number}{code}", data[start : start + number * width]))
    ends = [
        offset + size
        for offsets, sizes in ((273, 279), (324, 325))
        for offset, size in zip(values.get(offsets, []), values.get(sizes, []), strict=False)
    ]
    return max(ends, default=0)


def _told_length_boxes(data: bytes) -> int:
    at = 0
    names: set[bytes] = set()
    while at + 8 <= len(data) and not {b"meta", b"mdat"} <= names:  # what follows is no part of the picture
        size, name = struct.unpack(">I4s", data[at : at + 8])
        if size == 1:
            (size,) = struct.unpack(">Q", data[at + 8 : at + 16])
        if size == 0:
            return len(data)
        if 1 < size < 8:
            break
        names.add(name)
        at += size
    return at if b"mdat" in names else max(at, len(data) + 1)  # it ends before its pixels begin


def _filled(data: bytes, format: str, *, seed: int) -> list[bytes]:
    """Return the file filled up to its length in two ways with random bytes, and last as it is to be read."""
    generator = np.random.default_rng(seed)
    if format == "JPEG":
        if _lacks_scans(data):
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
    "WEBP": _told_length_webp,
    "BMP": _told_length_bmp,
    "TIFF": _told_length_tiff,
    "AVIF": _told_length_boxes,
    "HEIF": _told_length_boxes,
}
_ENDS_EARLY = {
    "JPEG": _jpeg_ends_early,
    "PNG": _png_ends_early,
    "GIF": _gif_ends_early,
    "WEBP": lambda data: _told_length_webp(data) > len(data),
    "BMP": lambda data: _told_length_bmp(data) > len(data),
    "TIFF": lambda data: _told_length_tiff(data) > len(data),
    "AVIF": lambda data: _told_length_boxes(data) > len(data),
    "HEIF": lambda data: _told_length_boxes(data) > len(data),
}
_COMPLETE = {"PNG": _complete_png, "GIF": _complete_gif}
