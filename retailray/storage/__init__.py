"""One way to every address: local folders, ``s3://``, ``gs://``, ``az://`` and whatever else fsspec knows.

Endpoint and credentials of object stores come from the usual environment variables, which their clients honour
in every process. Retries happen in the client; they are bounded so that a dead store is an answer and not a wait.
"""

from retailray.storage.access import MAX_BYTES, Access, is_below, is_of_another_kind, names_private_host, place_of
from retailray.storage.addresses import (
    PASSWORD,
    Member,
    cache_folder,
    canonical,
    embedded_address,
    folder_of,
    is_local,
    is_uri,
    join,
    member_address,
    normalize,
    other_unicode_forms,
    parent,
    parse_embedded,
    parse_member,
)
from retailray.storage.archives import first_names, read_index, read_members
from retailray.storage.client import (
    DEADLINE_S,
    check_readable,
)
from retailray.storage.fetching import fetch_groups, fetch_in_turn, fetch_many
from retailray.storage.identity import identities, local_identity
from retailray.storage.object_pages import object_pages
from retailray.storage.objects import (
    arrow_filesystem,
    compare_and_swap,
    exists,
    folder_entries,
    is_exclusive,
    is_file,
    list_files,
    matching,
    open_binary,
    put_if_absent,
    read_bytes,
    remove_file,
    remove_folder,
    size,
    write_bytes,
    write_file,
)
from retailray.storage.opening import GOOGLE_KEY, WORKER_ENV

__all__ = [
    "DEADLINE_S",
    "GOOGLE_KEY",
    "MAX_BYTES",
    "PASSWORD",
    "WORKER_ENV",
    "Access",
    "Member",
    "arrow_filesystem",
    "cache_folder",
    "canonical",
    "check_readable",
    "compare_and_swap",
    "embedded_address",
    "exists",
    "fetch_groups",
    "fetch_in_turn",
    "fetch_many",
    "first_names",
    "folder_entries",
    "folder_of",
    "identities",
    "is_below",
    "is_exclusive",
    "is_file",
    "is_local",
    "is_of_another_kind",
    "is_uri",
    "join",
    "list_files",
    "local_identity",
    "matching",
    "member_address",
    "names_private_host",
    "normalize",
    "object_pages",
    "open_binary",
    "other_unicode_forms",
    "parent",
    "parse_embedded",
    "parse_member",
    "place_of",
    "put_if_absent",
    "read_bytes",
    "read_index",
    "read_members",
    "remove_file",
    "remove_folder",
    "size",
    "write_bytes",
    "write_file",
]
