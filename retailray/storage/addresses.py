"""What addresses mean, without asking any store: joined, absolute, in one spelling."""

import os
import posixpath
import re

PASSWORD = re.compile(r"://[^/@]*:[^/@]+@")


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
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3://)"
        )
    address = canonical(address)
    return address.rstrip("/") if is_uri(address) else os.path.abspath(os.path.expanduser(address))


def join(root: str, *parts: str) -> str:
    """``root/part/…`` with ``.`` and ``..`` resolved; a part that is absolute or a URI replaces what is before it."""
    for part in parts:
        absolute = is_uri(part) or part.startswith("/")
        scheme, separator, path = canonical(part if absolute else root).rpartition("://")
        if not absolute:
            path = posixpath.join(path, part)
        if not (absolute and scheme) or ".." in path.split("/"):  # a URI stays else: empty segments are part of a key
            path = posixpath.normpath(path)
        root = scheme + separator + path
    return root


def canonical(address: str) -> str:
    """One spelling for one place: ``file:///x`` and ``local:///x`` are ``/x``, ``s3a://`` is ``s3://``."""
    if address.startswith("s3a://"):
        return "s3://" + address.removeprefix("s3a://")
    return address.removeprefix("file://").removeprefix("local://")


def parent(address: str) -> str:
    """The folder of an address."""
    return address.rsplit("/", 1)[0] or "/"


def is_local(address: str) -> bool:
    return not is_uri(canonical(address))
