"""Listing a bucket of a million objects: seconds, CPU seconds and peak memory of the process that asks.

    python -m benchmarks.listing [--objects 1000000] [--repeats 3] [--baseline FOLDER]

A server of its own answers ListObjectsV2 and nothing else, as fast as it can, so that the asking side is what is
measured: keys of 40 characters, a thousand a page. ``ours``: `storage.object_pages`; ``ours, in ranges``: cut into
eight; ``--baseline``: the same of another checkout; ``aiobotocore``: its paginator, as s3fs uses it; ``obstore``: its
listing as Arrow, where it is installed (it refuses a whole listing for one key like ``a//b`` or ``a/../b``).
"""

import argparse
import http.server
import os
import statistics
import subprocess
import sys
import threading
import time
import urllib.parse
from pathlib import Path

from benchmarks.shop import table

PAGE = 1000
HEAD = '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
OURS = """
from retailray import storage
bounds = {bounds}
count = sum(len(page) for page in storage.object_pages("s3://big/shop", bounds=bounds))
"""
AIOBOTOCORE = """
import asyncio, aiobotocore.session
async def go():
    async with aiobotocore.session.get_session().create_client("s3") as client:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket="big", Prefix="shop/")
        return sum([len([(i["Key"], i["ETag"], i["Size"]) for i in page["Contents"]]) async for page in pages])
count = asyncio.run(go())
"""
OBSTORE = """
import os
from obstore.store import S3Store
store = S3Store("big", endpoint=os.environ["AWS_ENDPOINT_URL_S3"], client_options={"allow_http": True})
count = sum(batch.num_rows for batch in store.list("shop", return_arrow=True, chunk_size=1000))
"""
MEASURE = """
import re, resource, sys, time
from pathlib import Path
started = time.monotonic()
exec(sys.argv[1])
used = resource.getrusage(resource.RUSAGE_SELF)
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
print(count, time.monotonic() - started, used.ru_utime + used.ru_stime, peak / (1 << 20))
"""


def key(number: int) -> str:
    return f"shop/images/{number:012d}/front-view.jpg"


class Lister(http.server.BaseHTTPRequestHandler):
    """ListObjectsV2 of keys that are made as they are asked for."""

    protocol_version = "HTTP/1.1"
    objects = 0

    def do_GET(self) -> None:
        asked = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        start = int(asked["continuation-token"][0]) if "continuation-token" in asked else 0
        if "start-after" in asked and "continuation-token" not in asked:
            start = int(asked["start-after"][0].split("/")[2]) + 1
        end = min(start + PAGE, self.objects)
        more = f"<NextContinuationToken>{end}</NextContinuationToken>" if end < self.objects else ""
        items = "".join(
            f"<Contents><Key>{key(number)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>&quot;{number:032x}&quot;</ETag><Size>{number % 99999}</Size>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
            for number in range(start, end)
        )
        truncated = str(bool(more)).lower()
        facts = f"<EncodingType>url</EncodingType><Name>big</Name><Prefix>shop/</Prefix><MaxKeys>{PAGE}</MaxKeys>"
        body = f"{HEAD}{facts}<IsTruncated>{truncated}</IsTruncated>{more}{items}</ListBucketResult>".encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


def serve(objects: int, port: int) -> None:
    Lister.objects = objects
    http.server.ThreadingHTTPServer(("127.0.0.1", port), Lister).serve_forever()


def measured(code: str, objects: int, folder: Path, environment: dict[str, str]) -> tuple[float, float, float]:
    """Seconds, CPU seconds, peak [GiB]."""
    words = [sys.executable, "-c", MEASURE, code]
    environment = environment | {"PYTHONPATH": str(folder)}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    count, *figures = map(float, done.stdout.split())
    assert count == objects, (count, objects)
    return figures[0], figures[1], figures[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--baseline", type=Path, help="a checkout of another version")
    parser.add_argument("--port", type=int, default=29123)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.objects, arguments.port)
        return
    here = Path(__file__).parents[1]
    cuts = [f"s3://big/{key(arguments.objects * at // 8)}" for at in range(1, 8)]
    ways = {"ours": (OURS.format(bounds=[]), here), "ours, in ranges": (OURS.format(bounds=cuts), here)}
    if arguments.baseline:
        ways["baseline"] = OURS.format(bounds=[]), arguments.baseline
        ways["baseline, in ranges"] = OURS.format(bounds=cuts), arguments.baseline
    ways["aiobotocore"] = AIOBOTOCORE, here
    try:
        import obstore  # noqa: F401

        ways["obstore"] = OBSTORE, here
    except ImportError:
        print("obstore is not installed, and is left out", file=sys.stderr)
    environment = os.environ | {
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{arguments.port}",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_REGION": "us-east-1",
    }
    command = [sys.executable, "-m", "benchmarks.listing", "--serve", "--objects", str(arguments.objects)]
    server = subprocess.Popen([*command, "--port", str(arguments.port)], cwd=here)
    found: dict[str, list[tuple[float, float, float]]] = {}
    try:
        time.sleep(3)
        for _ in range(arguments.repeats):
            for name, (code, folder) in ways.items():
                found.setdefault(name, []).append(measured(code, arguments.objects, folder, environment))
                print(name, *(f"{figure:.2f}" for figure in found[name][-1]), file=sys.stderr)
    finally:
        server.kill()
        threading.Event().wait(0.1)
    print(
        table(
            [
                {
                    "who": name,
                    "seconds": statistics.median(seconds for seconds, _, _ in runs),
                    "CPU seconds": statistics.median(cpu for _, cpu, _ in runs),
                    "peak, GiB": max(peak for *_, peak in runs),
                }
                for name, runs in found.items()
            ]
        )
    )


if __name__ == "__main__":
    main()
