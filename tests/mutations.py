"""Small catalogs with random faults in tables, image bytes, labels, ids and addresses, and what must hold of them.

Imports nothing of ours before a child process runs a command, so that a fork has what it needs and no thread.
"""

import dataclasses
import gzip
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

MAX_SECONDS, MAX_BYTES = 60, 2 << 30
TEXTS = ["", " ", "=1+1", "x" * 10_000, "a\nb", 'say "hi"', "\x00", "商品", "e\u0301", "\u202eabc", "nan", "-0",
         "1e400", "None", ",", ";", "\t", "'", "\\", "a//b", "%2F", "\ufeff", "NULL", "True"]  # fmt: skip
ADDRESSES = ["", "  ", "..", ".", "/", "/etc/passwd", "../../x.png", "file://other/x.png", "file:///etc/hostname",
             "http://127.0.0.1:1/x.png", "http://[", "http://169.254.169.254/x", "gopher://a/b", "x" * 5000 + ".png",
             "generic://file:///etc/hostname", "a\x00b.png", "*.png", "[a-z].png", "a#b/0", "c.parquet#image/0",
             "zip://a::b", "~/x.png", "memory://x/y.png", "C:\\x.png", "s3a://", "://",
             "data:image/png;base64,AAAA"]  # fmt: skip


@dataclasses.dataclass
class Case:
    """``rows``: how many rows the table has, where that is still sure."""

    folder: Path
    uri: str
    rows: int | None
    what: list[str]


def _picture(draw: random.Random) -> bytes:
    side = draw.choice([1, 8, 24, 40])
    values = np.random.default_rng(draw.randrange(10**6)).integers(0, 255, (side, side, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, draw.choice(["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"]))
    return buffer.getvalue()


def _damaged(data: bytes, draw: random.Random) -> bytes:
    kind = draw.randrange(7)
    if kind == 0:
        return data[: draw.randrange(len(data))]
    if kind == 1:
        flipped = bytearray(data)
        for _ in range(draw.randint(1, 20)):
            flipped[draw.randrange(len(flipped))] = draw.randrange(256)
        return bytes(flipped)
    if kind == 2:
        return data + bytes(draw.randrange(256) for _ in range(200))
    if kind == 3:
        return bytes(draw.randrange(256) for _ in range(draw.randrange(2000)))
    if kind == 4:
        return data[:8] + bytes(draw.randrange(256) for _ in range(300))
    if kind == 5:
        return draw.choice(
            [b"", b"<html>", b"{}", b"GIF89a", b"\xff\xd8\xff\xd9", b"BM", b"II*\x00", b"RIFF\xff\xff\xff\xffWEBP"]
        )
    at = draw.randrange(len(data))
    return data[:at] + data[at:] * 50


def make(folder: Path, seed: int) -> Case:
    """A catalog of some thirty rows with a few faults of several kinds."""
    draw = random.Random(seed)
    what = []
    rows = []
    for number in range(30):
        data = _picture(draw)
        if draw.random() < 0.2:
            data = _damaged(data, draw)
        name = f"{number}.png"
        (folder / name).write_bytes(data)
        rows.append({"image": name, "label": f"label {number % 3}", "sku": str(number // 2), "price": number / 7})
    for kind in draw.sample(["label", "sku", "image", "column"], draw.randint(0, 3)):
        what.append(kind)
        for _ in range(draw.randint(1, 8)):
            row = draw.choice(rows)
            if kind == "image":
                row["image"] = draw.choice(ADDRESSES)
            elif kind == "column":
                row["note"] = draw.choice([*TEXTS, float("nan"), float("inf"), -1])
            else:
                row[kind] = draw.choice(TEXTS)
    uri, sure, how = _write(folder, pd.DataFrame(rows), draw)
    return Case(folder, str(uri), len(rows) if sure else None, [*what, how])


def _write(folder: Path, frame: pd.DataFrame, draw: random.Random) -> tuple[Path, bool, str]:
    """The table in one of many ways; whether its rows are still sure."""
    how = draw.choice(["csv", "csv", "csv", "dialect", "encoding", "stray", "cut", "gz", "parquet", "jsonl", "bytes"])
    path = folder / "catalog.csv"
    text = frame.to_csv(index=False)
    if how == "parquet":
        frame = frame.astype({name: "str" for name in frame.columns if name == "note"})
        path = folder / "catalog.parquet"
        frame.astype({"price": draw.choice(["float32", "float64", "str"])}).to_parquet(path)
    elif how == "jsonl":
        path = folder / "catalog.jsonl"
        lines = frame.to_json(orient="records", lines=True).splitlines()
        if draw.random() < 0.3:
            lines[draw.randrange(len(lines))] = draw.choice(["{", "[]", "null", '{"image": 1}', ""])
            path.write_text("\n".join(lines))
            return path, False, how
        path.write_text("\n".join(lines) + "\n")
    elif how == "gz":
        path = folder / "catalog.csv.gz"
        data = gzip.compress(text.encode())
        if draw.random() < 0.3:
            path.write_bytes(data[: draw.randrange(20, len(data))])
            return path, False, how
        path.write_bytes(data)
    elif how == "dialect":
        text = frame.to_csv(index=False, sep=draw.choice(";\t|"), lineterminator=draw.choice(["\n", "\r\n"]))
        path.write_text(text, newline="")
    elif how == "encoding":
        path.write_bytes(text.encode(draw.choice(["utf-8-sig", "utf-16", "utf-16-le", "utf-32"]), errors="replace"))
        return path, False, how
    elif how in ("stray", "cut", "bytes"):
        data = bytearray(text.encode())
        if how == "cut":
            data = data[: draw.randrange(len(data))]
        for _ in range(draw.randint(1, 5) if how != "cut" else 0):
            at = draw.randrange(max(1, len(data)))
            data[at:at] = draw.choice([b'"', b"'", b"\n", b","]) if how == "stray" else bytes([draw.randrange(256)])
        path.write_bytes(data)
        return path, False, how
    else:
        path.write_text(text, newline="")
    return path, True, how


def problems_of(case: Case, bundle: str) -> list[str]:
    """Run ``check``, ``train`` and ``score`` on a case, each in a fork of this process; what went wrong with them."""
    found = []
    rows: dict[str, int] = {}
    for command in ("check", "train", "score"):
        out = case.folder / "out" / command
        code, seconds, size, error = _run(command, case, str(out), bundle)
        if os.environ.get("MUTATIONS_TELL"):
            print(command, code, f"{seconds:.1f} s", f"{size >> 20} MiB", error.strip()[-150:], flush=True)
        if code not in (0, 1, 2, 3) or "Traceback" in error or "unexpected" in error:
            found.append(f"{command}: exit {code}: {error[-500:]}")
        if code in (1, 2) and not error.strip():
            found.append(f"{command}: exit {code} without a word")
        if code in (0, 3) and command != "train":
            rows[command] = _rows_of(command, out)
        if seconds > MAX_SECONDS:
            found.append(f"{command}: {seconds:.0f} s")
        if size > MAX_BYTES:
            found.append(f"{command}: {size / 2**30:.1f} GiB")
    if len(set(rows.values()) - {-1}) > 1:
        found.append(f"rows differ: {rows}")
    if case.rows is not None and any(count not in (case.rows, -1) for count in rows.values()):
        found.append(f"{case.rows} rows in, {rows} out")
    return found


def _rows_of(command: str, out: Path) -> int:
    run = out / (out / "LATEST").read_text()
    if command == "check":
        return json.loads((run / "check.json").read_text())["num_rows"]
    return sum(len(pd.read_parquet(run / table)) for table in ("predictions", "errors"))


def _run(command: str, case: Case, out: str, bundle: str) -> tuple[int, float, int, str]:
    """(exit code, seconds, peak bytes, standard error) of a command in a fork."""
    settings = {"catalog.uri": case.uri, "catalog.group": "sku", "cluster.engine": "inline", "out": out}
    settings |= {
        "check": {},
        "train": {"model.arch": "cnn1", "train.epochs": 1, "transform.image_size": 16, "split.validation": 0.4,
                  "train.cache_uri": f"{case.folder}/cache"},
        "score": {"model.uri": bundle, "score.max_error_rate": 1},
    }[command]  # fmt: skip
    errors = case.folder / f"{command}.err"
    started = time.monotonic()
    child = os.fork()
    if not child:
        with open(errors, "wb") as file, open(os.devnull, "wb") as nothing:
            os.dup2(file.fileno(), 2)
            os.dup2(nothing.fileno(), 1)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
            code = 99
            try:
                from retailray.cli import main

                code = main([command, *[str(part) for key, value in settings.items() for part in (f"--{key}", value)]])
            finally:
                sys.stderr.flush()
                os._exit(code)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.alarm(2 * MAX_SECONDS)
    _, status, used = os.wait4(child, 0)
    signal.alarm(0)
    code = os.waitstatus_to_exitcode(status)
    return code, time.monotonic() - started, used.ru_maxrss * 1024, errors.read_text(errors="replace")


def import_all() -> None:
    """What the commands import, so that forks need not; no thread is started by it."""
    import importlib

    for name in ("retailray.cli", "retailray.quality.check", "retailray.training.train", "retailray.scoring.score",
                 "retailray.scoring.inference", "retailray.execution.inline_backend", "retailray.models.predictor",
                 "retailray.models.weights", "torchvision.models"):  # fmt: skip
        importlib.import_module(name)


def make_bundle(folder: Path) -> str:
    """An untrained bundle, made in a fork, since torch starts threads; its address."""
    child = os.fork()
    if not child:
        from retailray.models.bundle import BundleMeta, EvalTransform, save_bundle
        from retailray.models.weights import pretrained_model

        labels = ["label 0", "label 1", "label 2"]
        model, mean, std, _ = pretrained_model("cnn1", "none", len(labels), seed=0, image_size=16)
        transform = EvalTransform(resize_size=18, crop_size=16, mean=mean, std=std)
        meta = BundleMeta(name="untrained", version="1", arch="cnn1", labels=labels, transform=transform)
        save_bundle(str(folder), meta, model.state_dict())
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return str(folder)


def run(seeds: list[int]) -> int:
    """Print what was wrong at which seed; how many were."""
    import_all()
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_bundle(Path(folder) / "bundle")
        for seed in seeds:
            place = Path(folder) / str(seed)
            place.mkdir()
            case = make(place, seed)
            problems = problems_of(case, bundle)
            wrong += bool(problems)
            for problem in problems:
                print(f"seed {seed} ({', '.join(case.what)}): {problem}", flush=True)
            shutil.rmtree(place)
    return wrong


if __name__ == "__main__":
    sys.exit(run([int(seed) for seed in sys.argv[1:]]) > 0)
