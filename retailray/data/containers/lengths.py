"""WebP, BMP, TIFF, AVIF and HEIF: how long [bytes] a file has to be, as it says itself."""

import struct


def webp(data: bytes) -> int:
    return 8 + struct.unpack("<I", data[4:8])[0]


def bmp(data: bytes) -> int:
    size, offset = struct.unpack("<I4xI", data[2:14])
    width, height, depth, compression = struct.unpack("<ii2xHI", data[18:34])
    return offset + abs(height) * ((width * depth + 31) // 32 * 4) if compression in (0, 3) else size


def tiff(data: bytes) -> int:
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


def boxes(data: bytes) -> int:
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
