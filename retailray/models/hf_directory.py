"""A directory in transformers' format: where it lies, its config, and how pictures are prepared for its network."""

import contextlib
import dataclasses
import json
import posixpath
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from retailray import storage
from retailray.data.images import pixels
from retailray.data.scaling import SHORTER_SIDE, STRETCH
from retailray.errors import ModelError
from retailray.models.meta import EvalTransform
from retailray.models.state_dicts import ENDINGS, MAX_BYTES, check_size

CONFIG_NAME, PROCESSOR_NAME = "config.json", "preprocessor_config.json"
INDEX = ".index.json"
WEIGHT_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
MAX_JSON_BYTES = 16 << 20
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
SAME = 1e-4  # of a normalised pixel; a level of 255 is 0.004 and more


@dataclasses.dataclass(frozen=True)
class Folder:
    """A directory of this machine. ``source``: its address, for messages."""

    path: Path
    source: str

    def config(self) -> dict[str, Any]:
        """What ``config.json`` says. Raises ModelError."""
        return self._json(CONFIG_NAME)

    def processor(self) -> dict[str, Any]:
        """What ``preprocessor_config.json`` says. Raises ModelError."""
        return self._json(PROCESSOR_NAME)

    def _json(self, name: str) -> dict[str, Any]:
        file = self.path / name
        if not file.is_file():
            raise ModelError(
                f"{self.source}: no {name}: not a directory of transformers, which holds {CONFIG_NAME}, "
                f"model.safetensors and {PROCESSOR_NAME}"
            )
        check_size(str(file), MAX_JSON_BYTES)
        try:
            found = json.loads(file.read_bytes())
        except ValueError as error:
            raise ModelError(f"{self.source}: {name} is not JSON: {error}") from error
        if not isinstance(found, dict):
            raise ModelError(f"{self.source}: {name} holds a {type(found).__name__}, not an object")
        return found


@contextlib.contextmanager
def local_directory(source: str, *, weights: bool = False) -> Iterator[Folder]:
    """The directory of an address, copied for a while where it is remote; its weights only if they are wanted.

    Raises:
        ModelError: a file is too large, or the index of the weights is none. StorageError.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(source)
        if storage.is_uri(source):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="retailray-")))
            for name in (CONFIG_NAME, PROCESSOR_NAME):
                _copy(source, name, folder, at_most=MAX_JSON_BYTES)
        if weights:
            for name in _weight_files(source):
                if folder != Path(source):
                    _copy(source, name, folder, at_most=MAX_BYTES)
        yield Folder(folder, source)


def _weight_files(source: str) -> list[str]:
    """The file of the weights, or an index and the files that it names; safetensors where there are some."""
    for name in WEIGHT_NAMES:
        address = storage.join(source, name)
        if not storage.exists(address):
            continue
        if not name.endswith(INDEX):
            return [name]
        check_size(address, MAX_JSON_BYTES)
        try:
            named = set(json.loads(storage.read_bytes(address))["weight_map"].values())
            strange = [one for one in named if posixpath.basename(one) != one or not one.endswith(ENDINGS)]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{source}: {name} is no index of weights ({type(error).__name__}: {error})") from error
        strange += [one for one in named if one not in strange and not storage.exists(storage.join(source, one))]
        if strange:
            raise ModelError(f"{source}: {name} names {strange[0]!r}, which is no file of weights beside it")
        return [name, *sorted(named)]
    return []


def _copy(source: str, name: str, folder: Path, *, at_most: int) -> None:
    address = storage.join(source, name)
    if storage.exists(address):
        check_size(address, at_most)
        (folder / name).write_bytes(storage.read_bytes(address))


@dataclasses.dataclass(frozen=True)
class Processor:
    """An image processor of transformers, and the settings that it has."""

    library: Any
    settings: dict[str, Any]
    source: str

    def __call__(self, picture: Image.Image) -> torch.Tensor:
        """Float ``(3, H, W)``, as the library prepares a picture."""
        return self.library(picture, return_tensors="pt")["pixel_values"][0]

    def transform(self) -> EvalTransform:
        """What it does, as far as bundles can say it, after it was tried on pictures. Raises ModelError."""
        resize, resize_size, crop_size = self._sizes()
        resample = self.settings.get("resample")
        if resample not in _RESAMPLE:
            raise self._refused(f"resample = {resample}")
        interpolation = _RESAMPLE[resample]
        mean, std = self.normalization()
        scaling = {"resize": resize, "interpolation": interpolation, "cut": "down", "resized_by": "torchvision"}
        found = EvalTransform.model_validate(
            {"resize_size": resize_size, "crop_size": crop_size, "mean": mean, "std": std, **scaling}
        )
        self._try(found)
        return found

    def _sizes(self) -> tuple[str, int, int]:
        """How pictures are resized, to which size, and the side of what is cut out [px]."""
        settings = self.settings
        size, crop = settings.get("size") or {}, settings.get("crop_size") or {}
        if not settings.get("do_resize", True) or settings.get("do_pad") or size.get("longest_edge"):
            raise self._refused("pictures are not resized, or are padded")
        cuts, square = bool(settings.get("do_center_crop")), (size.get("height", 0), size.get("width", 1))
        resize, sides, final = STRETCH, square, square
        if shorter := size.get("shortest_edge"):
            crop_pct, sides = settings.get("crop_pct"), (shorter, shorter)
            if crop_pct and shorter < 384:  # ConvNeXT's processor, which cuts small pictures only
                return SHORTER_SIDE, int(shorter / crop_pct), shorter
            resize, final = (STRETCH if crop_pct else SHORTER_SIDE), sides
        if cuts:
            final = (crop.get("height", 0), crop.get("width", 1))
        squares = sides[0] == sides[1] and final[0] == final[1]
        if not squares or final[0] > sides[0] or (resize == SHORTER_SIDE and not cuts):
            raise self._refused(f"size = {size}, crop_size = {crop}")
        return resize, int(sides[0]), int(final[0])

    def _try(self, transform: EvalTransform) -> None:
        """Raises ModelError where the library makes other pixels than the transform."""
        mean, std = (np.array(values)[:, None, None] for values in (transform.mean, transform.std))
        for picture in _pictures():
            ours = (pixels(picture, transform.scaling) / 255 - mean) / std
            theirs = self(picture).numpy()
            if ours.shape != theirs.shape or np.abs(ours - theirs).max() > SAME:
                raise self._refused("it makes other pixels of a picture than its settings say")

    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation, asked of a black and a white picture: processors scale in ways of their own."""
        black, white = (self(Image.new("RGB", (640, 640), color)).double().mean((1, 2)) for color in ("black", "white"))
        std = 1 / (white - black)
        return tuple((-black * std).tolist()), tuple(std.tolist())

    def _refused(self, what: str) -> ModelError:
        return ModelError(
            f"{self.source}: its {PROCESSOR_NAME} cannot be expressed ({what}): give bundle.transform, which says how "
            "pictures are resized"
        )


def processor_of(transformers: Any, folder: Folder) -> Processor:
    """The image processor of a directory. Raises ModelError."""
    settings = folder.processor()
    if "auto_map" in settings:
        raise ModelError(
            f"{folder.source}: its {PROCESSOR_NAME} has auto_map, code that comes with it; it is never run"
        )
    try:
        library = transformers.AutoImageProcessor.from_pretrained(
            folder.path, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # whatever a processor's own code raises
        text = " ".join(str(error).split())[:300]
        raise ModelError(f"{folder.source}: transformers cannot read {PROCESSOR_NAME}: {text}") from error
    return Processor(library, library.to_dict(), folder.source)


def _pictures() -> list[Image.Image]:
    """Generated pictures of odd sizes, smooth and sharp, to compare two transforms on."""
    random = np.random.default_rng(0)
    found = []
    for width, height in ((301, 517), (640, 427), (233, 231), (700, 90), (64, 500), (31, 40)):
        coarse = random.integers(0, 256, (9, 9, 3), np.uint8)
        picture = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).copy()
        picture[::7, ::5] = random.integers(0, 256, 3, np.uint8)
        found.append(Image.fromarray(picture))
    return found
