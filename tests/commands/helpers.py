"""Read what commands leave, with other programs' readers."""

import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import fsspec
import psutil

from retailray.cli import main

INLINE = ("check", "train", "evaluate", "compare", "promote", "score")  # what runs without Ray too


def latest(out: str) -> str:
    """The run directory that LATEST names, checked to be complete."""
    fs, path = fsspec.core.url_to_fs(out, **({"use_listings_cache": False} if out.startswith("s3") else {}))
    run = f"{out}/{fs.cat_file(f'{path}/LATEST').decode()}"
    assert fs.exists(f"{run}/_SUCCESS".removeprefix("s3://"))
    return run


def read_json(address: str) -> dict:
    with fsspec.open(address) as file:
        return json.load(file)


def read_text(address: str) -> str:
    with fsspec.open(address, "rt") as file:
        return file.read()


def events(stdout: str) -> list[dict]:
    """Every line of standard output off a terminal is JSON."""
    return [json.loads(line) for line in stdout.splitlines()]


def words_of(command: str, settings: dict[str, object], *, inline: bool = True) -> list[str]:
    """The words of a command; in this process where the settings do not ask for more."""
    if (
        inline
        and command in INLINE
        and "cluster.engine" not in settings
        and settings.get("cluster.num_workers", 1) == 1
    ):
        settings = settings | {"cluster.engine": "inline"}
    return [command, *[part for key, value in settings.items() for part in (f"--{key}", str(value))]]


class Heard(io.StringIO):
    """Standard output of a command in this process, which another thread can wait for."""

    def __init__(self) -> None:
        super().__init__()
        self._more = threading.Condition()

    def write(self, text: str) -> int:
        with self._more:
            self._more.notify_all()
            return super().write(text)

    def until(self, name: str, count: int) -> None:
        """Until the event of this name has come so many times."""
        with self._more:
            assert self._more.wait_for(lambda: self.getvalue().count(f'"event": "{name}"') >= count, 120), name


def run_beside(words: list[str], interfere: Callable[[Heard], None]) -> tuple[int, list[dict]]:
    """A command in this process, and ``interfere`` in a thread meanwhile: its exit code and events."""
    heard, failed = Heard(), []

    def work() -> None:
        try:
            interfere(heard)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    with contextlib.redirect_stdout(heard):
        code = main(words)
    thread.join(120)
    assert not failed, (failed, code, heard.getvalue()[-1500:])
    return code, events(heard.getvalue())


def interrupt() -> None:
    """Ctrl-C for the command that runs in this process."""
    os.kill(os.getpid(), signal.SIGINT)


def ray_processes(*titles: str) -> list[psutil.Process]:
    """The processes of these titles below this one: those of a Ray that tests share, too."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(title in part for part in child.cmdline() for title in titles):
                found.append(child)
    return found


def start_command(command: str, *flags: str, **settings: object) -> subprocess.Popen:
    """A command in a process of its own, with a Ray of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    arguments = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    words = [sys.executable, "-m", "retailray", command, *arguments, *flags]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def rename_labels(bundle):
    """Let a bundle take its labels for others, with sums that are right."""
    change_meta(bundle, lambda meta: meta | {"labels": meta["labels"][1:] + meta["labels"][:1]})


def change_meta(bundle, change):
    """Let a bundle say other things of itself, with sums that are right."""
    meta = change(json.loads((bundle / "bundle.json").read_text()))
    (bundle / "bundle.json").write_text(json.dumps(meta))
    lines = (bundle / "MANIFEST").read_text().splitlines()
    names = [line.split("  ")[1] for line in lines]
    sums = [hashlib.sha256((bundle / name).read_bytes()).hexdigest() for name in names]
    (bundle / "MANIFEST").write_text("".join(f"{digest}  {name}\n" for digest, name in zip(sums, names, strict=True)))


def weights_of_three_libraries(shop):
    """Random weights, a folder for each network: ``<folder>/{arch}``, with some of each library."""
    import safetensors.torch
    import timm
    import torch
    import transformers

    from tests.models.test_other_libraries import HF

    folder = shop["catalog.uri"].parent / "weights"
    torch.manual_seed(0)
    networks = {
        "resnet18": safetensors.torch.load_file(str(shop["model.weights"]).format(arch="resnet18")),
        "resnet10t": timm.create_model("resnet10t", num_classes=7).state_dict(),
        "vit_tiny_patch16_224": timm.create_model("vit_tiny_patch16_224", num_classes=7).state_dict(),
    }
    for name, state in networks.items():
        (folder / name).mkdir(parents=True)
        safetensors.torch.save_file(state, folder / name / "model.safetensors")
    config = transformers.ViTConfig(**HF["vit"] | {"image_size": 32, "patch_size": 8}, num_labels=9)
    transformers.ViTForImageClassification(config).save_pretrained(folder / "small-vit")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "small-vit")
    return f"{folder}/{{arch}}"
