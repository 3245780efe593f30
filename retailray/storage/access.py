"""What may be read at the addresses that a catalog names, and how much of it."""

import dataclasses
import functools
import ipaddress
import os
from urllib.parse import urlsplit

from retailray.storage.addresses import HOSTS, azure_web_form, canonical, is_local, is_web

MAX_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class Access:
    """Rules for reading images.

    ``max_bytes``: of one object. ``allowed``: addresses below which private hosts may be asked, and to which links may
    lead: ``catalog.root`` and ``catalog.allow``. ``headers``: sent with HTTP requests to web addresses in
    ``allowed``, or to every web address if it contains none.
    """

    max_bytes: int = MAX_BYTES
    allowed: tuple[str, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()

    def allows(self, address: str) -> bool:
        return any(is_below(address, prefix) for prefix in self.allowed)

    def headers_for(self, address: str) -> dict[str, str]:
        # a container of Azure may have been written as a web address
        on_the_web = [prefix for prefix in self.allowed if is_web(prefix) or prefix.startswith("az://")]
        return dict(self.headers) if not on_the_web or self.allows(address) else {}


def is_below(address: str, folder: str) -> bool:
    """Whether an address lies in a folder, at any depth; ``/shop`` does not contain ``/shopping``."""
    if address.startswith("az://") != folder.startswith("az://") and (is_web(address) or is_web(folder)):
        address, folder = azure_web_form(address), azure_web_form(folder)  # one with a signature, or an account alone
    return address.startswith(folder if folder.endswith("/") else f"{folder}/")


def place_of(address: str) -> str:
    """Scheme and host (or bucket) of an address; '' for files of this machine."""
    address = canonical(address)
    if is_local(address):
        return ""
    scheme, _, rest = address.partition("://")
    return f"{scheme}://{rest.split('/')[0]}"


def is_of_another_kind(address: str) -> bool:
    """True for addresses that neither buckets nor the web answer, but other hosts: ftp, hdfs, smb."""
    return place_of(address).partition("://")[0] in HOSTS


def is_public(host: str) -> bool:
    """False for an IP address of loopback, of a private network, or link-local (where clouds keep credentials)."""
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return host.lower().rstrip(".") not in ("localhost",)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address.is_global and not address.is_multicast


def names_private_host(address: str) -> bool:
    """Whether an ``http(s)`` address names a host of this machine or of a private network, as far as its text tells."""
    return is_web(address) and _is_private(place_of(address))


@functools.lru_cache(4096)  # a catalog has many addresses of few hosts
def _is_private(place: str) -> bool:
    try:
        host = urlsplit(place).hostname or ""
    except ValueError:  # [ without ]
        return False
    return not is_public(host)


def leads_out(path: str, access: Access) -> str | None:
    """Where a local path really is, if links lead it out of the allowed folder in which it lies; else None."""
    folders = [folder for folder in access.allowed if is_local(folder)]
    if not any(is_below(path, folder) for folder in folders):
        return None
    real = os.path.realpath(path)
    if real == path:
        return None
    return None if any(is_below(real, os.path.realpath(folder)) for folder in folders) else real
