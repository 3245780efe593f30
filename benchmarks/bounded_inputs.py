"""What odd inputs cost: peak memory and time of whole commands on them.

    python -m benchmarks.bounded_inputs [CASE ...]     # all cases, or sparse, slow, long, labels, bucket, slowdown

- sparse: a 6 GB file named .png beside ten pictures; score.
- slow: pictures of 20 MB (1,000 of them, or BOUNDED_LARGE) on a server that sends each in a second; score.
- long: 20,000 rows, of which one has an id and one a label of 100,000 characters; check, train, score.
- labels: 20,000 labels of two rows each; train, evaluate, score.
- bucket: 50 pictures in a bucket beside 200,000 objects of others; check, score. Putting them there takes 10 to 30 min.
- slowdown: a store that answers SlowDown to every write below a folder for 60 s; score.

Prints a line a command: exit code, seconds, peak memory, and what was asserted.
"""

import asyncio
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from tests.conftest import S3_ENV, start_proxy, start_s3_server
from tests.mutations import make_bundle

GOOD = 10
LARGE = int(os.environ.get("BOUNDED_LARGE", "1000"))


def picture(side: int = 32, format: str = "PNG", seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    values = np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8)
    Image.fromarray(values).save(buffer, format)
    return buffer.getvalue()


def run(command: str, **settings: object) -> Path | str:
    """Run a command in a process of its own and print what it cost; its run directory."""
    started = time.monotonic()
    arguments = [str(part) for key, value in settings.items() for part in (f"--{key}", value)]
    process = subprocess.Popen(
        [sys.executable, "-m", "retailray", command, "--cluster.engine", "inline", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    errors: list[str] = []
    reader = threading.Thread(target=lambda: errors.append(process.stderr.read()))
    reader.start()
    output = process.stdout.read()
    reader.join()
    _, status, used = os.wait4(process.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    seconds, peak = time.monotonic() - started, used.ru_maxrss / 2**20
    print(f"  {command}: exit {code}, {seconds:.0f} s, peak {peak:.2f} GiB", flush=True)
    assert code in (0, 3), errors[0][-2000:]
    out = str(settings["out"])
    last = json.loads(output.splitlines()[-1])
    return Path(out) / f"run_id={last['run_id']}" if "://" not in out else f"{out}/run_id={last['run_id']}"


def codes(folder: Path) -> dict[str, int]:
    return pd.read_parquet(folder / "errors").error_code.value_counts().to_dict()


def sparse(folder: Path, bundle: str) -> None:
    names = [f"{number}.png" for number in range(GOOD)]
    for name in names:
        (folder / name).write_bytes(picture())
    with open(folder / "huge.png", "wb") as file:
        file.truncate(6 << 30)
    (folder / "c.csv").write_text("image\n" + "\n".join([*names, "huge.png"]) + "\n")
    found = run("score", **{"catalog.uri": folder / "c.csv", "model.uri": bundle, "score.max_error_rate": 1,
                            "out": folder / "out"})  # fmt: skip
    assert codes(found) == {"too_many_bytes": 1}


def slow(folder: Path, bundle: str) -> None:
    from aiohttp import web

    data = picture(2600, "TIFF")
    print(f"  {LARGE} pictures of {len(data) / 1e6:.0f} MB")

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(data))})
        await response.prepare(request)
        for start in range(0, len(data), len(data) // 10 + 1):
            await response.write(data[start : start + len(data) // 10 + 1])
            await asyncio.sleep(0.1)
        return response

    with served(answer) as base:
        names = [f"{base}/{number}.tif" for number in range(LARGE)]
        (folder / "c.csv").write_text("image\n" + "\n".join(names) + "\n")
        found = run("score", **{"catalog.uri": folder / "c.csv", "model.uri": bundle, "score.dedupe": "false",
                                "catalog.allow": json.dumps([base]), "out": folder / "out"})  # fmt: skip
    assert len(pd.read_parquet(found / "predictions")) == LARGE


@contextlib.contextmanager
def served(handler):
    from aiohttp import web

    loop, ready, base = asyncio.new_event_loop(), threading.Event(), []

    async def start() -> None:
        app = web.Application()
        app.router.add_get("/{path:.*}", handler)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        base.append(f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}")
        ready.set()

    threading.Thread(target=lambda: (loop.run_until_complete(start()), loop.run_forever()), daemon=True).start()
    ready.wait()
    yield base[0]
    loop.call_soon_threadsafe(loop.stop)


def twenty_thousand(folder: Path, labels: list[str], ids: list[str]) -> None:
    """Rows of twenty pictures under names of their own, by links that stay in the folder."""
    for number in range(20):
        (folder / f"{number}.png").write_bytes(picture(seed=number))
    rows = {"image": [f"{number % 20}.png" for number in range(len(labels))], "label": labels, "item": ids}
    pd.DataFrame(rows).to_csv(folder / "c.csv", index=False)


TRAIN = {"model.arch": "cnn1", "train.epochs": 1, "transform.image_size": 16, "train.cache": "off"}


def long(folder: Path, bundle: str) -> None:
    labels, ids = [f"label {number % 5}" for number in range(20_000)], [str(number) for number in range(20_000)]
    labels[77], ids[777] = "l" * 100_000, "i" * 100_000
    twenty_thousand(folder, labels, ids)
    common = {"catalog.uri": folder / "c.csv", "catalog.id": "item"}
    run("check", **common, out=folder / "check")
    run("train", **common, **TRAIN, out=folder / "train")
    found = run("score", **common, **{"model.uri": bundle, "out": folder / "score"})
    assert len(pd.read_parquet(found / "predictions")) == 20_000


def labels(folder: Path, bundle: str) -> None:
    names = [f"label {number % 20_000:05d}" for number in range(40_000)]
    twenty_thousand(folder, names, [str(number) for number in range(40_000)])
    common = {"catalog.uri": folder / "c.csv", "catalog.id": "item"}
    trained = run("train", **common, **TRAIN, out=folder / "train")
    model = {"model.uri": trained / "bundle"}
    run("evaluate", **common, **model, **{"evaluate.split": "all", "out": folder / "evaluate"})
    found = run("score", **common, **model, out=folder / "score")
    assert len(pd.read_parquet(found / "predictions")) == 40_000


def put_fifty(fs, path: str) -> None:
    """Fifty pictures and their catalog, in a new bucket."""
    fs.mkdir(path.split("/")[0])
    for number in range(50):
        fs.pipe_file(f"{path}/{number}.png", picture(seed=number))
    fs.pipe_file(f"{path}/c.csv", ("image\n" + "".join(f"{n}.png\n" for n in range(50))).encode())


def bucket(folder: Path, bundle: str) -> None:
    with s3(folder) as fs:
        put_fifty(fs, "crowd/shop")
        started = time.monotonic()
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda n: fs.pipe_file(f"crowd/shop/foreign/{n:06d}", b"x"), range(200_000)))
        print(f"  200,000 foreign objects, put in {time.monotonic() - started:.0f} s")
        run("check", **{"catalog.uri": "s3://crowd/shop/c.csv", "catalog.label": "image", "out": folder / "check"})
        run("score", **{"catalog.uri": "s3://crowd/shop/c.csv", "model.uri": bundle, "out": folder / "score"})


def slowdown(folder: Path, bundle: str) -> None:
    with s3(folder) as fs:
        put_fifty(fs, "busy")
        with start_proxy(os.environ["AWS_ENDPOINT_URL_S3"], "slow-writes:60") as endpoint:
            os.environ["AWS_ENDPOINT_URL_S3"] = endpoint
            run("score", **{"catalog.uri": "s3://busy/c.csv", "model.uri": bundle, "out": "s3://busy/out"})


@contextlib.contextmanager
def s3(folder: Path):
    import s3fs

    os.environ |= S3_ENV
    process, endpoint = start_s3_server(folder / "server.log")
    os.environ["AWS_ENDPOINT_URL_S3"] = endpoint
    try:
        yield s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True, endpoint_url=endpoint)
    finally:
        process.kill()


CASES = {case.__name__: case for case in (sparse, slow, long, labels, bucket, slowdown)}


def main() -> None:
    for name in sys.argv[1:] or CASES:
        print(name, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            CASES[name](Path(folder), make_bundle(Path(folder) / "bundle"))


if __name__ == "__main__":
    main()
