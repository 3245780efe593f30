"""What the settings of a catalog allow to read."""

import os
import re

from retailray import storage
from retailray.config import CatalogSection
from retailray.errors import ConfigError

_VARIABLE = re.compile(r"\$\{(\w+)\}")


def access_of(section: CatalogSection) -> storage.Access:
    """The rules for reading a catalog's images; variables in ``catalog.http_headers`` are replaced here, in the driver.

    Raises:
        ConfigError: a variable is not set.
    """
    tables = [uri for uri in (section.uri, section.validation_uri, section.test_uri) if uri]
    roots = [section.root] if section.root else [storage.folder_of(uri) for uri in tables]
    headers = tuple((name, _VARIABLE.sub(_value, text)) for name, text in section.http_headers.items())
    return storage.Access(section.max_bytes, tuple(dict.fromkeys([*roots, *section.allow])), headers)


def _value(found: re.Match[str]) -> str:
    name = found.group(1)
    if name not in os.environ:
        raise ConfigError([f"catalog.http_headers: the environment has no {name}"])
    return os.environ[name]


def refusal(path: str, address: str, file: str, root: str, section: CatalogSection) -> str:
    """Why the image at an address may not be read; '' if it may.

    Args:
        path: what the catalog says. file: the catalog's file. root: where relative paths begin.
    """
    path = storage.canonical(path)
    own = storage.parse_embedded(address) is not None and address.startswith(f"{file}#")
    own = own or (storage.parse_member(address) is not None and address.startswith(f"{file}!/"))
    if not path or own or storage.is_below(address, root):
        return ""
    if any(storage.is_below(address, allowed) or address == allowed for allowed in section.allow):
        return ""
    place = storage.place_of(address)
    if storage.PASSWORD.search(address):
        shown = storage.PASSWORD.sub("://...@", f"{place}/").rstrip("/")
        return f"an address at {shown} with a password in it; catalog.http_headers can say who asks"
    if storage.names_private_host(address):
        return f"{address} is on a private host; name {place} in catalog.allow"
    own_place = place in (storage.place_of(root), storage.place_of(file))
    relative = not storage.is_uri(path) and not path.startswith("/")
    if place and own_place and not relative:
        return ""
    if section.allow:
        return f"{address} is neither below {root} nor in catalog.allow"
    if relative:
        return f"{path!r} leaves {root}; set catalog.root to the folder that holds all images, or catalog.allow"
    if own_place:
        return ""
    if not storage.is_local(file):
        what = f"in {place}" if place else "a file of the machine that reads it"
        return f"{path!r} is {what}, and the catalog is in {storage.place_of(file)}; name it in catalog.allow"
    if storage.is_of_another_kind(address):
        return f"{address} is neither in a bucket nor on the web; name {place} in catalog.allow"
    return ""
