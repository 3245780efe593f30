"""PNG: chunks with a checksum each; the pixels are one compressed stream."""

import struct
import zlib
from collections.abc import Iterator

_SIGNATURE, _END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"
# chunks that say nothing about pixels as we show them; Pillow refuses a file whose text or profile is large
_TEXT = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")


def without_text(data: bytes) -> bytes:
    """Return a PNG without its texts and its colour profile, which no pixel of ours depends on."""
    if not any(name in data for name in _TEXT):
        return data
    kept = [data[: len(_SIGNATURE)]]
    kept += [data[start:stop] for name, start, stop in _chunks(data) if name not in _TEXT]
    return b"".join(kept)


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and end of every chunk, header and checksum included; the last one may be cut."""
    at = len(_SIGNATURE)
    while at + 8 <= len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        stop = min(at + 12 + length, len(data))
        yield name, at, stop
        at = stop


def ends_early(data: bytes) -> bool:
    if data.endswith(_END):
        return False
    names = [name for name, _, _ in _chunks(data)]
    return b"IEND" not in names and all(name.isalpha() for name in names)  # else it is damaged


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def complete(data: bytes) -> tuple[int, bytes]:
    chunks = [(name, data[start:stop]) for name, start, stop in _chunks(data)]
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
    parts = [_SIGNATURE, *before, _chunk(b"IDAT", zlib.compress(pixels.ljust(expected, b"\0"), 1)), _END]
    return missing, b"".join(parts)
