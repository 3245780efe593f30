"""Figures of matplotlib as SVG within a page: values where one points at them, colours of the page's theme."""

import functools
import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ParamSpec, TypeVar

import matplotlib  # and no pyplot: how figures are shown is the program's that imports us, a notebook's say
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

ACCENT, SECOND, GREY, INK, SOFT, EDGE, GRID = (
    "#0f766e",
    "#d97706",
    "#94a3b8",
    "#334155",
    "#475569",
    "#cbd5e1",
    "#eef2f6",
)
# of the page, which knows whether it is light or dark
_OF_THEME = {ACCENT: "accent", SECOND: "second", INK: "ink", SOFT: "soft", EDGE: "line", GRID: "grid"}
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": EDGE,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "axes.grid": True,
    "grid.color": GRID,
    "axes.axisbelow": True,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "retailray",  # the same figure is the same file
}
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
WIDE_PX = 700  # what is wider does not shrink to a phone, and scrolls
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_UNSEEN = (0.0, 0.0, 0.0, 0.002)  # what is drawn in it can be pointed at

P = ParamSpec("P")
R = TypeVar("R")


def styled(plot: Callable[P, R]) -> Callable[P, R]:
    """Our style for one plot, and the caller's (a notebook's, say) left as it is."""

    @functools.wraps(plot)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.rc_context(_STYLE):
            return plot(*args, **kwargs)

    return wrapper


class Chart:
    """A figure with ``axes`` side by side, and what is said where one points at its marks.

    Args:
        columns: panels. width, height: inches.
    """

    def __init__(self, columns: int, *, width: float, height: float) -> None:
        self.figure = Figure(figsize=(width, height), dpi=144)
        self.axes: list[Axes] = list(self.figure.subplots(1, columns, squeeze=False)[0])
        self._told: dict[str, str] = {}

    def tell(self, mark: Artist, text: str) -> None:
        """Say ``text`` where one points at a mark."""
        name = f"told-{len(self._told)}"
        mark.set_gid(name)
        self._told[name] = _plain(text)

    def tell_points(self, axes: Axes, xs: Iterable[float], ys: Iterable[float], texts: Sequence[str]) -> None:
        """Say one of ``texts`` where one points at, or near, a point."""
        for x, y, text in zip(xs, ys, texts, strict=True):
            self.tell(axes.plot([x], [y], "o", color=_UNSEEN, markersize=9, markeredgewidth=0)[0], text)

    def tell_area(self, axes: Axes, corner: tuple[float, float], size: tuple[float, float], text: str) -> None:
        """Say ``text`` where one points into a rectangle."""
        self.tell(axes.add_patch(Rectangle(corner, *size, facecolor=_UNSEEN, edgecolor="none", zorder=9)), text)

    @styled
    def svg(self, description: str) -> Markup:
        """An ``svg`` element as wide as there is room for, up to its own width; ``description`` is its text.

        Needs the template's CSS variables for colours.
        """
        root = ET.fromstring(self._saved("svg", transparent=True, metadata={"Date": None, "Creator": None}))
        root[:] = [part for part in root if part.tag != f"{{{_SVG}}}metadata"]
        for parent in list(root):  # matplotlib's rules would hold for the whole page
            parent[:] = [part for part in parent if part.tag != f"{{{_SVG}}}style"]
        used = set(re.findall(r"#([\w.-]+)", " ".join(_references(root))))
        for element in root.iter():
            name = element.get("id")
            if name in self._told:
                title = ET.Element(f"{{{_SVG}}}title")
                title.text = self._told[name]
                element.insert(0, title)
            if name and name not in used:  # matplotlib's names would stand in a page once a figure
                del element.attrib["id"]
        width = float(root.attrib.pop("width").removesuffix("pt")) * 4 / 3
        del root.attrib["height"]
        root.attrib |= {
            "class": "plot wide" if width > WIDE_PX else "plot",
            "role": "img",
            "aria-label": _plain(description),
            "style": f"max-width: {width:.0f}px; stroke-linejoin: round",
        }
        ET.register_namespace("", _SVG)
        ET.register_namespace("xlink", _XLINK)
        text = ET.tostring(root, encoding="unicode")
        for colour, name in _OF_THEME.items():
            text = text.replace(f": {colour}", f": var(--{name})")
        return Markup(text)

    @styled
    def png(self) -> bytes:
        """The same as a picture on white."""
        return self._saved("png")

    def _saved(self, kind: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        with warnings.catch_warnings():  # names in scripts that matplotlib's font lacks are boxes, and no news
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            self.figure.savefig(buffer, format=kind, **options)
        return buffer.getvalue()


def _references(root: ET.Element) -> list[str]:
    """The values that may refer to an element by its id."""
    return [
        value
        for element in root.iter()
        for name, value in element.attrib.items()
        if name == f"{{{_XLINK}}}href" or "url(#" in value
    ]


def short(text: str, length: int = 26) -> str:
    # matplotlib reads $ as mathematics
    text = _plain(text)
    return (text if len(text) <= length else text[: length - 1] + "…").replace("$", r"\$")


def _plain(text: str) -> str:
    """Text without what XML cannot hold."""
    return _NOT_XML.sub("\ufffd", text)
