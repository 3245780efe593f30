"""JPEG: segments between markers; the scans of a progressive one bring its pixels bit by bit."""

import re
import struct
from collections.abc import Iterator

_MARKER = re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]")  # in entropy-coded data, neither stuffing nor a restart


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start of its content and end of its content. Ends without an end marker where the file does."""
    at = 2
    while at < len(data):
        found = _MARKER.match(data, at)
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
            following = _MARKER.search(data, stop)
            if not following:
                return
            stop = following.start()
        at = stop


def ends_early(data: bytes) -> bool:
    if data.endswith(b"\xff\xd9"):
        return False
    try:
        markers = [marker for marker, _, _ in _segments(data)]
    except ValueError:
        return False
    return not markers or markers[-1] != 0xD9


def lacks_scans(data: bytes) -> bool:
    """Return whether a progressive JPEG has coefficients whose last bits no scan brings."""
    components: list[int] = []
    bits: dict[tuple[int, int], int] = {}
    for marker, start, stop in _segments(data):
        if marker == 0xC2:
            components = [data[at] for at in range(start + 6, stop, 3)]
        elif marker == 0xDA and components:
            count = data[start]
            first, last, low = data[stop - 3], data[stop - 2], data[stop - 1] & 15
            for number in range(count):
                bits |= dict.fromkeys(((data[start + 1 + 2 * number], k) for k in range(first, last + 1)), low)
    return any(bits.get((component, k), 1) for component in components for k in range(64))


def pixels_of_missing_intervals(data: bytes) -> int:
    """Return the pixels of the restart intervals of a JPEG that are not there at all.

    A decoder that finds no restart marker leaves them grey whatever follows, so that no filling shows them.
    """
    interval, width, height, factors, scan, components = 0, 0, 0, [(1, 1)], len(data), 1
    for marker, start, stop in _segments(data):
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
