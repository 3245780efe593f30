"""From a template and its values to a page; pictures from where the images are."""

import base64
import concurrent.futures
import contextlib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence

import jinja2
import joblib
import numpy as np

from retailray import storage
from retailray.config import CatalogSection
from retailray.data.access import access_of
from retailray.data.images import decode, limits_of, to_jpeg, whole
from retailray.data.numeric_labels import spelled
from retailray.data.scaling import Scaling
from retailray.errors import ERROR_CODES, ImageError
from retailray.reports.glossary import definitions, linked

THUMBNAIL_PX, SMALL_PX = 256, 128  # a page shows them at half their size, and enlarges them
AT_ONCE = 32  # pictures in memory that are not yet small
MANY = 100  # pictures of a page: they are small then, or it would have more than 3 MB

# the header cells of tables and the words below the figures of cards
_HEADINGS = re.compile(r"(<th(?: [^>]*)?>|</b><span>)([^<]+)(</th>|</span></div>)")
_SECTION = re.compile(r"<section([^>]*)><h2>(.*?)</h2>")

_environment = jinja2.Environment(
    loader=jinja2.PackageLoader("retailray.reports"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
_environment.filters["percent"] = lambda value, digits=1: "–" if value is None else f"{100 * value:.{digits}f} %"
_environment.filters["number"] = spelled
_environment.filters["thousands"] = lambda value: f"{value:,}".replace(",", "\u202f")


def render(template: str, **values: object) -> str:
    """A page as text, with a list of its sections and the meanings of its words.

    Everything that is not made here is escaped.
    """
    page = _environment.get_template(template).render(**values)
    used: set[str] = set()
    page = _HEADINGS.sub(lambda found: found[1] + linked(found[2], used) + found[3], page)
    page = page.replace("<!-- words -->", definitions(used))
    titles: list[str] = []

    def with_anchor(found: re.Match[str]) -> str:
        titles.append(found[2])
        return f'<section{found[1]} id="section-{len(titles)}"><h2>{found[2]}</h2>'

    page = _SECTION.sub(with_anchor, page)
    links = [f'<a href="#section-{number}">{title}</a>' for number, title in enumerate(titles, 1)]
    return page.replace("<!-- contents -->", f'<nav aria-label="sections">{"".join(links)}</nav>' if links[2:] else "")


def data_uri(data: bytes, kind: str = "image/jpeg") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def thumbnails(uris: Sequence[str], section: CatalogSection, *, of_page: int = 0) -> list[str | None]:
    """Their central squares as data URIs; None for what cannot be read any more.

    Args:
        section: what may be read, and of which size. of_page: how many pictures the page has.
    """
    side = SMALL_PX if max(of_page, len(uris)) > MANY else THUMBNAIL_PX

    def square(data: bytes) -> np.ndarray:
        return decode(data, Scaling(side, side), limits_of(section))

    return _shown(uris, section, square)


def pictures(uris: Sequence[str], section: CatalogSection, *, side: int) -> list[str | None]:
    """All of each picture as a data URI, its longer side at most ``side`` pixels; None as above."""
    return _shown(uris, section, lambda data: whole(data, side=side, limits=limits_of(section)))


def _shown(uris: Sequence[str], section: CatalogSection, read: Callable[[bytes], np.ndarray]) -> list[str | None]:
    def show(fetched: tuple[int, bytes | ImageError]) -> tuple[int, str | None]:
        at, data = fetched
        with contextlib.suppress(ImageError):
            if isinstance(data, bytes):
                return at, data_uri(to_jpeg(read(data)))
        return at, None

    shown: list[str | None] = [None] * len(uris)
    fetched = iter(storage.fetch_in_turn(uris, access_of(section)))
    with concurrent.futures.ThreadPoolExecutor(joblib.cpu_count()) as pool:
        while some := list(itertools.islice(fetched, AT_ONCE)):  # not all, which may be large
            for at, text in pool.map(show, some):
                shown[at] = text
    return shown


def picture_facts(**values: object) -> dict[str, str]:
    """What is said of a picture that is enlarged; what is not known is left out."""
    texts = {
        name.replace("_", " "): f"{one:.3f}" if isinstance(one, float) else str(one) for name, one in values.items()
    }
    return {name: text for name, text in texts.items() if text not in ("", "None")}


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
