"""From a template and its values to a page; pictures from where the images are."""

import base64
from collections.abc import Sequence
from typing import Any

import jinja2
import numpy as np

from retailray import storage
from retailray.data.images import Limits, decode, to_jpeg
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
    """Pictures as data URIs of :data:`THUMBNAIL_PX`; None for what cannot be read any more."""
    pictures: list[str | None] = []
    for data in storage.fetch_many(list(uris)):
        try:
            if isinstance(data, ImageError):
                raise data
            image = decode(data, resize_size=THUMBNAIL_PX, crop_size=THUMBNAIL_PX, limits=_LIMITS)
            pictures.append(data_uri(to_jpeg(np.asarray(image))))
        except ImageError:
            pictures.append(None)
    return pictures
