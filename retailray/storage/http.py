"""Images on the web: addresses are sent as they are written, servers are asked as they want to be asked."""

import asyncio
import email.utils
import importlib.metadata
import re
import socket
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence

import aiohttp
import aiohttp.abc
import aiohttp.resolver
import yarl

from retailray.errors import ImageError
from retailray.storage.access import Access, is_public, names_private_host
from retailray.storage.client import ROUNDS, wait_before

DEADLINE_S = 120.0  # for one picture, all tries and waits together
HOST_REQUESTS = 8  # of one task, at a host at once
REDIRECTS = 5
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=30)
_MOVED = (301, 302, 303, 307, 308)
_SAFE = "%/:?#[]@!$&'()*+,;=~"
_STRAY_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


class PrivateHost(OSError):
    """A name stands for a host that may not be asked."""


def fetch(addresses: Sequence[str], access: Access, up_to: int) -> list[bytes | ImageError]:
    """The first ``up_to`` bytes at every address, in order. Not from a thread that runs an event loop."""
    return asyncio.run(_fetch_all(addresses, access, up_to))


async def _fetch_all(addresses: Sequence[str], access: Access, up_to: int) -> list[bytes | ImageError]:
    async with _session(_PublicHosts(_proxies())) as public, _session(aiohttp.resolver.ThreadedResolver()) as any_host:

        async def one(address: str) -> bytes | ImageError:
            try:
                return await _patiently(address, access, up_to, public, any_host)
            except ImageError as error:
                return error

        return list(await asyncio.gather(*map(one, addresses)))


def _session(resolver: aiohttp.abc.AbstractResolver) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit_per_host=HOST_REQUESTS, resolver=resolver),
        headers={"User-Agent": f"retailray/{importlib.metadata.version('retailray')}"},
        timeout=_TIMEOUT,
        trust_env=True,  # proxies
        cookie_jar=aiohttp.DummyCookieJar(),
    )


async def _patiently(
    address: str, access: Access, up_to: int, public: aiohttp.ClientSession, any_host: aiohttp.ClientSession
) -> bytes:
    """Try again what may be over in a moment. Raises ImageError."""
    deadline = time.monotonic() + DEADLINE_S
    for attempt in range(ROUNDS):
        retry_after: float | None = None
        try:
            status, headers, data = await _follow(address, access, up_to, public, any_host)
        except (TimeoutError, aiohttp.ClientError) as error:
            if private := _private(error):
                raise ImageError("not_allowed", f"{address}: {private}; name it in catalog.allow") from error
            if isinstance(error, aiohttp.InvalidURL):
                raise ImageError("bad_address", f"{address[:200]}: {error}") from error
            kind = "timeout" if isinstance(error, TimeoutError) else "fetch_failed"
            failure = ImageError(kind, f"{address}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        else:
            if status < 300:
                return data
            failure = _failure(address, status)
            if status not in (408, 425, 429) and status < 500:
                raise failure
            retry_after = _seconds(headers.get("Retry-After"))
        wait = wait_before(attempt) if retry_after is None else retry_after
        if attempt == ROUNDS - 1 or time.monotonic() + wait > deadline:
            raise failure
        await asyncio.sleep(wait)
    raise AssertionError("the last round returns or raises")


async def _follow(
    address: str, access: Access, up_to: int, public: aiohttp.ClientSession, any_host: aiohttp.ClientSession
) -> tuple[int, Mapping[str, str], bytes]:
    """Status, headers and body of what an address leads to."""
    url = _as_written(address)
    headers = access.headers_for(address)
    for _ in range(REDIRECTS + 1):
        allowed = access.allows(str(url))
        if names_private_host(str(url)) and not allowed:
            raise ImageError("not_allowed", f"{address}: leads to a private host; name {url.origin()} in catalog.allow")
        session = any_host if allowed else public
        async with session.get(url, headers=headers, allow_redirects=False) as answer:
            target = answer.headers.get("Location")
            if answer.status not in _MOVED or not target:
                return answer.status, answer.headers, await _body(answer, up_to) if answer.status < 300 else b""
        moved = _as_written(urllib.parse.urljoin(str(url), target))
        if moved.scheme not in ("http", "https"):
            raise ImageError("not_allowed", f"{address}: redirects to an unsupported address ({moved.scheme})")
        headers = headers if moved.origin() == url.origin() else {}  # they may be secrets of the first host
        url = moved
    raise ImageError("fetch_failed", f"{address}: more than {REDIRECTS} redirects")


async def _body(answer: aiohttp.ClientResponse, up_to: int) -> bytes:
    parts, size = [], 0
    async for part in answer.content.iter_any():
        parts.append(part)
        size += len(part)
        if size >= up_to:
            break
    return b"".join(parts)[:up_to]


def _as_written(address: str) -> yarl.URL:
    """What is in a signed address stays as it is; only what no address may have in it is encoded."""
    try:
        return yarl.URL(_STRAY_PERCENT.sub("%25", urllib.parse.quote(address, safe=_SAFE)), encoded=True)
    except ValueError as error:
        raise ImageError("bad_address", f"{address[:200]}: {error}") from error


def _failure(address: str, status: int) -> ImageError:
    code = {401: "access_denied", 403: "access_denied", 404: "not_found", 410: "not_found", 408: "timeout"}
    return ImageError(code.get(status, "fetch_failed"), f"{address}: the server answers {status}")


def _seconds(retry_after: str | None) -> float | None:
    """``Retry-After`` as seconds from now: a number, or a date."""
    if not retry_after:
        return None
    if retry_after.strip().isdigit():
        return float(retry_after)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return None


def _proxies() -> set[str]:
    """Hosts of the proxies that the environment names: these are asked, whatever their addresses."""
    hosts = (urllib.parse.urlsplit(proxy).hostname for proxy in urllib.request.getproxies().values())
    return {host for host in hosts if host}


def _private(error: BaseException) -> str | None:
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, PrivateHost):
            return str(cause)
        cause = cause.__cause__ or getattr(cause, "os_error", None)
    return None


class _PublicHosts(aiohttp.abc.AbstractResolver):
    """Names that stand for private hosts are refused when they are looked up, so that what is checked is asked."""

    def __init__(self, exempt: set[str]) -> None:
        self._inner, self._exempt = aiohttp.resolver.ThreadedResolver(), exempt

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[aiohttp.abc.ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        if host not in self._exempt and not all(is_public(result["host"]) for result in found):
            raise PrivateHost(f"{host} stands for a private host")
        return found

    async def close(self) -> None:
        await self._inner.close()
