"""Bytes to pixels: ``uint8 (3, H, W)`` RGB, the same function for training and scoring.

JPEGs are decoded at a reduced scale where libjpeg can (Pillow's ``draft``) and the way of resizing allows it
(:mod:`retailray.data.scaling`), everything else at full size. Transparent pixels are composed over white, as product
pages show them.
"""

import dataclasses
import functools
import importlib
import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from retailray.config import CatalogSection
from retailray.data.containers import png
from retailray.data.image_files import completed, ends_early, format_of
from retailray.data.scaling import CENTRAL_SQUARE, Scaling, central_square, cut_of_whole
from retailray.errors import ImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
DECODER_VERSION = 2  # raised when the same bytes give other pixels; predictions of another version are made anew
_ORIENTATION_TAG = 0x0112
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
Image.init()  # registers WebP and TIFF too; open() with names that are not registered yet fails


@dataclasses.dataclass(frozen=True)
class Limits:
    """What is refused before it is decoded."""

    max_pixels: int
    max_aspect_ratio: float


@dataclasses.dataclass(frozen=True)
class ImageFacts:
    """What the header says. Width and height [px] are as displayed, orientation applied."""

    format: str
    width: int
    height: int
    mode: str


def limits_of(section: CatalogSection) -> Limits:
    return Limits(section.max_pixels, section.max_aspect_ratio)


def open_image(data: bytes, limits: Limits) -> tuple[Image.Image, ImageFacts]:
    """Read the header only. A file that lacks less than a row of pixels at its end is made whole.

    Raises:
        ImageError: ``empty_file``, ``not_an_image``, ``truncated``, ``corrupt``, ``too_many_pixels``,
            ``bad_aspect_ratio``.
    """
    _lift_limits_of_pillow()
    if not data:
        raise ImageError("empty_file", "the file has zero bytes")
    format = format_of(data)
    if format == "HEIF" and not _reads_heif():
        raise ImageError(
            "not_an_image",
            "this is a HEIC picture, which is read where pillow-heif is installed: pip install 'retailray[heic]', or "
            "export the picture as JPEG",
        )
    if format == "PNG":
        data = png.without_text(data)
    check = functools.partial(_check_limits, limits=limits)
    if format and ends_early(data, format):
        data = completed(data, format, check)
    image = _open(data, format)
    check(image)
    width, height = image.size
    if _orientation(image) in (5, 6, 7, 8):
        width, height = height, width
    return image, ImageFacts(image.format or "", width, height, image.mode)


@functools.cache
def _lift_limits_of_pillow() -> None:
    """Our own limit, checked on the header, takes their place: from the first image on, not from the import.

    Pillow's settings and Python's filters are the process's, so that they cannot be set for a while beside other
    threads.
    """
    Image.MAX_IMAGE_PIXELS = None
    warnings.filterwarnings("ignore", module=r"PIL\..*")  # of damage that it mends


def _open(data: bytes, format: str | None) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=(*FORMATS, "HEIF") if format == "HEIF" else FORMATS)
    except Exception as error:  # a damaged header makes Pillow raise nearly anything
        if format and isinstance(error, UnidentifiedImageError):
            raise ImageError("corrupt", f"it begins as a {format} file does, and its header is damaged") from error
        if format:
            raise ImageError("corrupt", f"{type(error).__name__}: {error}") from error
        raise ImageError("not_an_image", f"no known image format{_looks_like(data)}") from error


def _looks_like(data: bytes) -> str:
    """What else it may be; not its bytes, which may be nobody's to see."""
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    kinds = {
        "an HTML page": (b"<!doctype html", b"<html"),
        "XML": (b"<?xml", b"<svg"),
        "JSON": (b"{", b"["),
        "a PDF": (b"%pdf",),
        "a ZIP archive": (b"pk\x03\x04",),
        "a gzip archive": (b"\x1f\x8b",),
    }
    return next((f"; it seems to be {kind}" for kind, signs in kinds.items() if start.startswith(signs)), "")


def _check_limits(image: Image.Image, limits: Limits) -> None:
    width, height = image.size
    if width * height > limits.max_pixels:
        raise ImageError("too_many_pixels", f"{width} x {height} px is over catalog.max_pixels = {limits.max_pixels}")
    if max(width, height) > limits.max_aspect_ratio * min(width, height):
        raise ImageError(
            "bad_aspect_ratio",
            f"{width} x {height} px is over catalog.max_aspect_ratio = {limits.max_aspect_ratio:g}",
        )


@functools.cache
def _reads_heif() -> bool:
    """Register pillow-heif with Pillow where it is installed (the ``heic`` extra)."""
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return False
    return True


def decode(data: bytes, scaling: Scaling, limits: Limits) -> np.ndarray:
    """Decode, scale and cut.

    Returns:
        uint8 ``(3, crop_size, crop_size)``, RGB.

    Raises:
        ImageError: with one of the ``decode`` codes.
    """
    image, _ = open_image(data, limits)
    return pixels(image, scaling)


def pixels(image: Image.Image, scaling: Scaling) -> np.ndarray:
    """The same from an image that :func:`open_image` has opened."""
    orientation = _orientation(image)
    if scaling.resize == CENTRAL_SQUARE:  # it may be turned after the cut, which is cheaper
        square = _turned(central_square(_load(image, at_least=scaling.resize_size), scaling), orientation)
    else:
        square = cut_of_whole(_turned(_load(image), orientation), scaling)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TRANSPOSITIONS[orientation]) if orientation in _TRANSPOSITIONS else image


def whole(data: bytes, *, side: int, limits: Limits) -> np.ndarray:
    """Decode all of a picture for people to look at, its longer side at most ``side`` pixels.

    Returns:
        uint8 ``(3, H, W)``, RGB.

    Raises:
        ImageError: with one of the ``decode`` codes.
    """
    image, _ = open_image(data, limits)
    orientation = _orientation(image)
    rgb = _load(image, at_least=side)
    rgb.thumbnail((side, side), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(_turned(rgb, orientation)).transpose(2, 0, 1))


def _load(image: Image.Image, *, at_least: int | None = None) -> Image.Image:
    """RGB; JPEG at the smallest scale with both sides of ``at_least`` pixels, if given. Raises ImageError."""
    try:
        if at_least and image.format in ("JPEG", "MPO"):  # MPO is what many phones write and call .jpg
            image.draft(None, (at_least, at_least))
        image.load()
        return _to_rgb(image)
    except Exception as error:
        raise ImageError("corrupt", f"{type(error).__name__}: {error}") from error


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":  # Pillow turns these itself when it loads them
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged EXIF says nothing about the pixels
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a sample, kept in 16 or 32
        image = Image.fromarray(_to_8_bits(np.asarray(image)))
    elif image.mode == "F":
        samples = np.nan_to_num(np.asarray(image))
        # samples of 0 to 1, or of any larger range; a few that pass 1 do not make the rest black
        image = Image.fromarray((samples * (255 / max(1.0, float(samples.max(initial=0))))).clip(0, 255).astype("u1"))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(samples: np.ndarray) -> np.ndarray:
    """Scale integer samples ``(H, W)`` to uint8.

    Files rarely say how many of their 16 bits are used. So white is 255 for samples of 8 bits, the largest sample up to
    14 bits, the whole range of 16 bits from half of it on, and in between it moves steadily from one to the other:
    brightness never jumps as the largest sample grows.
    """
    largest = int(samples.max(initial=0))
    white = float(np.interp(largest, (0, 255, 16_383, 32_767, 65_535), (255, 255, 16_383, 65_535, 65_535)))
    white = max(white, largest)
    if samples.dtype == np.uint16:  # a table in place of arithmetic on every pixel
        return np.rint(np.arange(65_536, dtype=np.float32) * (255 / white)).clip(0, 255).astype(np.uint8)[samples]
    return np.rint(samples.astype(np.float32) * np.float32(255 / white)).clip(0, 255).astype(np.uint8)


def to_jpeg(image: np.ndarray, *, quality: int = 80) -> bytes:
    """A small JPEG of uint8 ``(3, H, W)``, for reports."""
    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
