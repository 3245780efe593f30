"""Text files in any encoding, read as UTF-8 with line feeds; what is no text is named as what it is."""

import bz2
import codecs
import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from typing import Any

from retailray import storage
from retailray.errors import CatalogError

COMPRESSIONS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open}
PIECE_ROWS = 20_000
MAX_LINE = 64 << 20  # characters: no line of a table is that long, and all of a line is in memory
_HEAD_BYTES = 1 << 16
_NOT_TEXT = (
    (b"PK\x03\x04", "an Excel workbook (.xlsx) or another ZIP archive (let the name of an archive end in .zip)"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel workbook (.xls)"),
    (b"PAR1", "a Parquet file; let its name end in .parquet"),
    (b"\x1f\x8b", "gzip data; let its name end in .gz"),
    (b"BZh", "bzip2 data; let its name end in .bz2"),
    (b"%PDF", "a PDF document"),
    (b"SQLite format 3\0", "an SQLite database"),
)
_BYTE_ORDER_MARKS = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)


class Utf8Reader(io.RawIOBase):
    """A text file as a stream of UTF-8 bytes with line feeds.

    A byte order mark says the encoding, whatever ``encoding`` is.

    Raises:
        CatalogError: the file is no text, or not of this encoding; the message names what it is, or line and byte. A
            line is longer than ``max_line`` characters.
    """

    def __init__(self, address: str, file: Any, encoding: str, max_line: int | None = None) -> None:
        self._address, self._file, self._max_line = address, file, max_line
        self._head = file.read(_HEAD_BYTES)
        self._encoding = _detect_encoding(address, self._head, encoding)
        try:
            codec = codecs.lookup(self._encoding)
        except LookupError as error:
            raise CatalogError(f"catalog.encoding = {encoding!r}: no such encoding; try utf-8 or latin-1") from error
        self._decoder = io.IncrementalNewlineDecoder(codec.incrementaldecoder(), translate=True)
        self._left = memoryview(b"")
        self._lines, self._line_length = 1, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        at_end = False
        while not self._left and not at_end:
            data, self._head = self._head or self._file.read(1 << 20), b""
            at_end = not data
            self._left = memoryview(self._decode(data, final=at_end).encode())
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def _decode(self, data: bytes, *, final: bool) -> str:
        try:
            text = self._decoder.decode(data, final)
        except UnicodeDecodeError as error:
            line = self._lines + error.object[: error.start].count(b"\n")
            raise CatalogError(
                f"{self._address}: line {line}: byte 0x{error.object[error.start]:02x} is not {self._encoding}; "
                "set catalog.encoding (latin-1 and cp1252 are common) or save the file as utf-8"
            ) from error
        self._lines += text.count("\n")
        self._line_length = len(text) - 1 - end if (end := text.rfind("\n")) >= 0 else self._line_length + len(text)
        if self._max_line and self._line_length > self._max_line:
            raise CatalogError(
                f"{self._address}: line {self._lines} is longer than {self._max_line} characters: this is no table "
                "with a record a line"
            )
        return text


def _detect_encoding(address: str, head: bytes, encoding: str) -> str:
    for signature, kind in _NOT_TEXT:
        if head.startswith(signature):
            raise CatalogError(f"{address}: this is {kind}, and its name says text; save the table as CSV or Parquet")
    if head.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        raise CatalogError(f"{address}: this is an HTML page, not a table; was a log-in page saved in its place?")
    for mark, found in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return found
    if not encoding.lower().startswith(("utf-16", "utf_16", "utf16", "utf-32", "utf_32", "utf32")):
        for first, name in ((1, "utf-16-le"), (0, "utf-16-be")):
            zeros, others = head[first::2].count(0), head[1 - first :: 2].count(0)
            if zeros > len(head) // 8 and zeros > 8 * others:
                raise CatalogError(
                    f"{address}: this looks like UTF-16 without a byte order mark; set catalog.encoding to {name}, or "
                    "save the file as UTF-8"
                )
    return encoding


@contextlib.contextmanager
def opened(address: str) -> Iterator[Any]:
    """The bytes of a file, decompressed by its name."""
    with storage.open_binary(address) as raw:
        decompressor = next((made for end, made in COMPRESSIONS.items() if address.lower().endswith(end)), None)
        if decompressor is None:
            yield raw
            return
        try:
            with decompressor(raw) as plain:
                yield plain
        except (OSError, EOFError, zlib.error) as error:  # what is wrong with the store comes as a StorageError
            raise CatalogError(f"{address}: not {address[address.rfind('.') :]} data ({error})") from error


@contextlib.contextmanager
def text_of(address: str, encoding: str, *, max_line: int | None = None) -> Iterator[Any]:
    """The bytes of a text file, as :class:`Utf8Reader` gives them."""
    with opened(address) as plain:
        text = io.BufferedReader(Utf8Reader(address, plain, encoding, max_line), 1 << 20)
        if not text.peek(1):
            raise CatalogError(f"{address}: the file is empty")
        yield text
