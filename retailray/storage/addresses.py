"""What addresses mean, without asking any store: joined, absolute, in one spelling."""

import functools
import os
import posixpath
import re
import unicodedata
import urllib.parse
from typing import NamedTuple

# what answers at an address: buckets and the web; and hosts that a catalog reaches only where it is allowed to
STORES = ("s3", "gs", "az", "adl", "oss", "hf", "http", "https")
HOSTS = ("hdfs", "webhdfs", "ftp", "sftp", "smb", "memory")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?=://)")
PASSWORD = re.compile(r"://[^/@]*:[^/@]+@")
_FILE_URI = re.compile(r"file:(?:(?://(?:localhost)?)(?=/)|(?=/(?!/)))", re.IGNORECASE)
_AZURE_HOST = re.compile(r"\.(blob|dfs)\.core\.windows\.net$")
AZURE_ACCOUNT = re.compile(r"[a-z0-9]{3,24}")
_OTHER_SCHEMES = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "abfs": "az", "abfss": "az"}
# with a query it carries its own permission, and is read as it is
_BLOB = re.compile(
    r"https://(?P<account>[^./]+)\.blob\.core\.windows\.net/(?P<container>[^/?#%@]+)(?P<key>/[^?#]*)?", re.IGNORECASE
)
_MEMBER = re.compile(
    r"(?P<archive>.+?\.(?:zip|tar|tgz|tbz2|tar\.gz|tar\.bz2))!/(?:@(?P<offset>\d+)\+(?P<size>\d+)/)?(?P<name>.+)",
    re.IGNORECASE | re.DOTALL,
)
_EMBEDDED = re.compile(r"(?P<file>.+\.(?:parquet|pq))#(?P<column>[^/]+)/(?P<row>\d+)", re.IGNORECASE | re.DOTALL)


def is_uri(address: str) -> bool:
    """True for ``scheme://…``; plain paths are local."""
    return "://" in address


def normalize(address: str) -> str:
    """An address that means the same in every process: URIs stay, local paths become absolute.

    Raises:
        ValueError: there is a password in it.
    """
    if PASSWORD.search(address):
        raise ValueError(
            "a password in an address would stand in configs, logs and records; give it by the environment "
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3://, AZURE_STORAGE_ACCOUNT_KEY for az://)"
        )
    address = canonical(address)
    return address.rstrip("/") if is_uri(address) else os.path.abspath(os.path.expanduser(address))


def join(root: str, *parts: str) -> str:
    """``root/part/…`` with ``.`` and ``..`` resolved; a part that is absolute or a URI replaces what is before it.

    Empty segments (``a//b``) are part of an object's key and stay in URIs; in local paths they mean nothing.
    """
    for part in parts:
        part = canonical(part)
        absolute = is_uri(part) or part.startswith("/")
        scheme, separator, path = (part if absolute else canonical(root)).rpartition("://")
        if not absolute:
            path = f"{path.rstrip('/')}/{part}" if path else part
        if not scheme:
            path = posixpath.normpath(path)
        elif not absolute or ".." in path.split("/"):
            path = _without_dots(path)
        root = scheme + separator + path
    return root


def _without_dots(path: str) -> str:
    """Resolve ``.`` and ``..`` in the path of a URI and keep its empty segments."""
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            kept = kept[:-1]
        elif segment != ".":
            kept.append(segment)
    return "/".join(kept)


def canonical(address: str) -> str:
    """Return the one spelling of an address, which every table, ledger and rule has.

    ``file:///x``, ``file:/x`` and ``local:///x`` become ``/x``; ``s3a://`` and ``s3n://`` ``s3://``; ``gcs://``
    ``gs://``. What names a container of Azure Blob storage (``abfs://``, ``abfss://container@account.dfs.core.../``,
    and ``https://account.blob.core.../container/`` of the environment's own account) becomes ``az://container/`` or,
    of an account that the environment does not name, ``az://container@account/``. Every scheme is in lower case.

    ``file:`` addresses are decoded as :rfc:`8089` says (``%20`` is a blank), since ``Path.as_uri()`` encodes them. One
    that names another host stays as it is, and cannot be opened.
    """
    is_azures = address[:2].lower() in ("az", "ab") or address[:8].lower() == "https://"
    return _canonical(address, azure_account() if is_azures else "")


def azure_account() -> str:
    """The storage account that the environment names, or ''."""
    named = os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")
    if named or not (text := os.environ.get("AZURE_STORAGE_CONNECTION_STRING")):
        return named.lower()
    return dict(part.partition("=")[::2] for part in text.split(";")).get("AccountName", "").lower()


@functools.lru_cache(1024)  # one address is asked for many times in a row
def _canonical(address: str, account: str) -> str:
    if scheme := _SCHEME.match(address):
        address = scheme[0].lower() + address[scheme.end() :]
    for other, scheme_ in _OTHER_SCHEMES.items():
        if address.startswith(f"{other}://"):
            address = f"{scheme_}://{address[len(other) + 3 :]}"
    if address.startswith("az://"):
        return _canonical_azure(address, account)
    if account and (found := _BLOB.fullmatch(address)) and found["account"].lower() == account:
        return f"az://{found['container']}{urllib.parse.unquote(found['key'] or '')}"
    # to the end, or what a catalog may not read could be reached through one spelling within another
    while (plain := _without_file_scheme(address)) != address:
        address = plain
    return address


def _canonical_azure(address: str, account: str) -> str:
    """``az://container/key``, with ``@account`` where it is not the environment's."""
    host, slash, key = address.removeprefix("az://").partition("/")
    container, _, named = host.partition("@")
    named = _AZURE_HOST.sub("", named.lower())
    return f"az://{container}{f'@{named}' if named not in ('', account) else ''}{slash}{key}"


def azure_web_form(address: str) -> str:
    """The ``https://`` address of what a canonical address of Azure names; every other address as it is."""
    if not address.startswith("az://"):
        return address
    account, path = split_azure(address.removeprefix("az://"))
    return f"https://{account or azure_account()}.blob.core.windows.net/{urllib.parse.quote(path)}"


def split_azure(path: str) -> tuple[str, str]:
    """The account that a canonical address of Azure names (or ''), and ``container/key``."""
    host, slash, key = path.partition("/")
    container, _, account = host.partition("@")
    return account, f"{container}{slash}{key}"


def _without_file_scheme(address: str) -> str:
    if found := _FILE_URI.match(address):
        return urllib.parse.unquote(address[found.end() :])
    return address.removeprefix("local://")


def parent(address: str) -> str:
    """The folder of an address."""
    return address.rsplit("/", 1)[0] or "/"


def folder_of(address: str) -> str:
    """The folder in which a table, the tables of a pattern, or a folder's files lie."""
    scheme, separator, path = address.rpartition("://")
    segments = path.split("/")
    pattern = next((at for at, name in enumerate(segments) if any(sign in name for sign in "*?[")), None)
    if pattern is None:
        pattern = len(segments) - ("." in segments[-1])
    return scheme + separator + "/".join(segments[:pattern])


def is_web(address: str) -> bool:
    """True for ``http(s)://…``."""
    return address.startswith(("http://", "https://"))


def is_local(address: str) -> bool:
    return not is_uri(canonical(address))


def other_unicode_forms(address: str) -> list[str]:
    """Return the address in the Unicode normal forms (NFC, NFD) that differ from how it is written.

    macOS writes ``é`` as two code points into archives and listings, most other programs as one.
    """
    forms = dict.fromkeys(unicodedata.normalize(form, address) for form in ("NFC", "NFD"))
    return [form for form in forms if form != address]


def embedded_address(file: str, column: str, row: int) -> str:
    """Return the address of an image that lies in a row (from 0) of a Parquet file: ``<file>#<column>/<row>``."""
    return f"{file}#{urllib.parse.quote(column, safe='')}/{row}"


def parse_embedded(address: str) -> tuple[str, str, int] | None:
    """Return file, column and row of an :func:`embedded_address`; None for every other address."""
    found = _EMBEDDED.fullmatch(address)
    return (found["file"], urllib.parse.unquote(found["column"]), int(found["row"])) if found else None


class Member(NamedTuple):
    """A file of an archive; ``offset`` and ``size`` of its bytes in it, where an address says them (else -1)."""

    archive: str
    name: str
    offset: int = -1
    size: int = -1


def member_address(archive: str, name: str, *, offset: int = -1, size: int = -1) -> str:
    """Return the address of a file within an archive: ``<archive>!/<name>``, of a tar file with the place of its bytes:
    ``<archive>!/@<offset>+<size>/<name>``."""
    return f"{archive}!/{name}" if offset < 0 else f"{archive}!/@{offset}+{size}/{name}"


def parse_member(address: str) -> Member | None:
    """The reverse of :func:`member_address`; None for every other address."""
    found = _MEMBER.fullmatch(address)
    if not found:
        return None
    placed = found["offset"] is not None
    return Member(found["archive"], found["name"], *((int(found["offset"]), int(found["size"])) if placed else ()))


def cache_folder() -> str:
    """The folder of this user for what can be computed again."""
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "retailray")
