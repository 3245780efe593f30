"""fault_proxy.py PORT UPSTREAM [MODE]: in front of a store's server, what stores do on a bad night.

random: 5 % SlowDown, 2 % resets, 1 % bodies cut in half, 20 ms on every request. slow-writes:SECONDS: every PUT below a
prefix (a folder) is refused with SlowDown until so many seconds after the first one. no-conditions: the conditions of
conditional writes (If-None-Match, If-Match, Google's ifGenerationMatch) are ignored. GET /__faults tells how often.
"""

import asyncio
import random
import re
import socket
import struct
import sys
import time
from collections import Counter

import aiohttp
import yarl
from aiohttp import web

SLOW_DOWN = (
    b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'
)
LATENCY_S = 0.02
MODE, _, PARAMETER = (sys.argv[3] if len(sys.argv) > 3 else "random").partition(":")
first_put: dict[str, float] = {}
told: Counter[str] = Counter()


async def handle(request: web.Request) -> web.StreamResponse:
    if request.path == "/__faults":
        return web.json_response(told)
    told["requests"] += 1
    body = await request.read()
    await asyncio.sleep(LATENCY_S)
    draw = random.random() if MODE == "random" else 1.0
    if MODE == "slow-writes" and request.method == "PUT" and _is_busy(request.path.rpartition("/")[0]):
        draw = 0.0
    if draw < 0.05:
        told["slow_down"] += 1
        return web.Response(status=503, body=SLOW_DOWN, content_type="application/xml")
    if draw < 0.07:
        told["reset"] += 1
        return hang_up(request)
    url = yarl.URL(sys.argv[2] + request.raw_path, encoded=True)
    headers = request.headers.copy()
    if MODE == "no-conditions":
        for name in ("If-None-Match", "If-Match"):
            headers.pop(name, None)
        url = yarl.URL(re.sub(r"&?ifGenerationMatch=\d+", "", str(url)), encoded=True)
    async with request.app["session"].request(request.method, url, headers=headers, data=body) as upstream:
        data = await upstream.read()
        answer = web.StreamResponse(status=upstream.status, headers=upstream.headers)
        answer.headers.pop("Transfer-Encoding", None)  # what is sent on has a length
    cut = draw < 0.08 and request.method == "GET" and len(data) > 100
    if request.method != "HEAD":
        answer.content_length = len(data)
    await answer.prepare(request)
    if request.method != "HEAD":
        await answer.write(data[: len(data) // 2] if cut else data)
    if cut:
        told["truncated"] += 1
        return hang_up(request)
    await answer.write_eof()
    return answer


def _is_busy(prefix: str) -> bool:
    return time.monotonic() - first_put.setdefault(prefix, time.monotonic()) < float(PARAMETER)


def hang_up(request: web.Request) -> web.Response:
    """A reset, and not a polite end."""
    assert request.transport
    request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.transport.abort()
    return web.Response()


async def with_session(app: web.Application):
    connector = aiohttp.TCPConnector(limit=40)
    async with aiohttp.ClientSession(auto_decompress=False, connector=connector) as app["session"]:
        yield


if __name__ == "__main__":
    random.seed(0)
    app = web.Application(client_max_size=1 << 30)
    app.cleanup_ctx.append(with_session)
    app.router.add_route("*", "/{path:.*}", handle)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)
