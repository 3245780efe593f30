"""From a template and its values to a page; pictures from where the images are."""

import base64
from collections.abc import Callable, Sequence
from typing import Any

import jinja2
import numpy as np

from retailray import storage
from retailray.data.images import Limits, decode, to_jpeg, whole
from retailray.errors import ImageError

THUMBNAIL_PX = 128
# a picture in a report is of an image that has already been read; these only keep it from being a bomb
_LIMITS = Limits(max_pixels=200_000_000, max_aspect_ratio=1000)

_environment = jinja2.Environment(
    loader=jinja2.PackageLoader("retailray.reports"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
_environment.filters["percent"] = lambda value, digits=1: "–" if value is None else f"{100 * value:.{digits}f} %"
_environment.filters["thousands"] = lambda value: f"{value:,}".replace(",", "\u202f")


def render(template: str, **values: Any) -> str:
    """A page as text. Everything that is not made here is escaped."""
    return _environment.get_template(template).render(**values)


def data_uri(data: bytes, kind: str = "image/jpeg") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def thumbnails(uris: Sequence[str]) -> list[str | None]:
    """Their central squares as data URIs of :data:`THUMBNAIL_PX`; None for what cannot be read any more."""
    return _shown(uris, lambda data: decode(data, resize_size=THUMBNAIL_PX, crop_size=THUMBNAIL_PX, limits=_LIMITS))


def pictures(uris: Sequence[str], *, side: int) -> list[str | None]:
    """All of each picture as a data URI, its longer side at most ``side`` pixels; None as above."""
    return _shown(uris, lambda data: whole(data, side=side, limits=_LIMITS))


def _shown(uris: Sequence[str], read: Callable[[bytes], np.ndarray]) -> list[str | None]:
    shown: list[str | None] = []
    for data in storage.fetch_in_turn(uris):
        try:
            if isinstance(data, ImageError):
                raise data
            shown.append(data_uri(to_jpeg(read(data))))
        except ImageError:
            shown.append(None)
    return shown
