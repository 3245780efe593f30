"""GIF: pictures of LZW codes in chains of blocks. Only the first picture counts."""

import struct

from retailray.errors import ImageError


def _picture(data: bytes) -> tuple[int, int]:
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


def ends_early(data: bytes) -> bool:
    try:
        _, start = _picture(data)
    except ValueError:
        return False
    return not _sub_blocks(data, start + 1)[1]


def complete(data: bytes) -> tuple[int, bytes]:
    descriptor, start = _picture(data)
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
