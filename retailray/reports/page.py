"""From a template and its values to a page; pictures from where the images are."""

import base64
import contextlib
from collections.abc import Callable, Mapping, Sequence

import jinja2
import numpy as np

from retailray import storage
from retailray.config import CatalogSection
from retailray.data.access import access_of
from retailray.data.images import decode, limits_of, to_jpeg, whole
from retailray.errors import ERROR_CODES, ImageError

THUMBNAIL_PX = 128

_environment = jinja2.Environment(
    loader=jinja2.PackageLoader("retailray.reports"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
_environment.filters["percent"] = lambda value, digits=1: "–" if value is None else f"{100 * value:.{digits}f} %"
_environment.filters["thousands"] = lambda value: f"{value:,}".replace(",", "\u202f")


def render(template: str, **values: object) -> str:
    """A page as text. Everything that is not made here is escaped."""
    return _environment.get_template(template).render(**values)


def data_uri(data: bytes, kind: str = "image/jpeg") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def thumbnails(uris: Sequence[str], section: CatalogSection) -> list[str | None]:
    """Their central squares as data URIs of :data:`THUMBNAIL_PX`; None for what cannot be read any more.

    ``section``: what may be read, and of which size.
    """

    def square(data: bytes) -> np.ndarray:
        return decode(data, resize_size=THUMBNAIL_PX, crop_size=THUMBNAIL_PX, limits=limits_of(section))

    return _shown(uris, section, square)


def pictures(uris: Sequence[str], section: CatalogSection, *, side: int) -> list[str | None]:
    """All of each picture as a data URI, its longer side at most ``side`` pixels; None as above."""
    return _shown(uris, section, lambda data: whole(data, side=side, limits=limits_of(section)))


def _shown(uris: Sequence[str], section: CatalogSection, read: Callable[[bytes], np.ndarray]) -> list[str | None]:
    shown: list[str | None] = [None] * len(uris)
    for at, data in storage.fetch_in_turn(uris, access_of(section)):
        with contextlib.suppress(ImageError):
            if isinstance(data, bytes):
                shown[at] = data_uri(to_jpeg(read(data)))
    return shown


def error_summary(
    codes: Mapping[str, int], examples: Mapping[str, Sequence[Mapping[str, str]]]
) -> list[dict[str, object]]:
    """Rows for the error table: most frequent code first, with one example where there is one."""
    summary = []
    for code, count in sorted(codes.items(), key=lambda item: -item[1]):
        first = examples.get(code) or [{}]
        example = f"{first[0]['id']}: {first[0]['message']}" if first[0] else ""
        summary.append({"code": code, "count": count, "meaning": ERROR_CODES[code][1], "example": example})
    return summary
