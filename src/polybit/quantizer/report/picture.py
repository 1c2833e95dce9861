"""Pictures as data: boxes, labels and strokes, which become SVG here and a PNG elsewhere.

A colour is a name of `LIGHT`, which follows the reader's theme, or "#rrggbb", which stays.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from types import MappingProxyType

LIGHT: Mapping[str, str] = MappingProxyType(
    {
        "paper": "#ffffff",
        "ink": "#1b2430",
        "soft": "#5b6675",
        "grid": "#dde3ea",
        "accent": "#1f6fbf",
        "second": "#d9822b",
        "good": "#1f7a4d",
        "bad": "#b3261e",
    }
)
DARK: Mapping[str, str] = MappingProxyType(
    {
        "paper": "#12171e",
        "ink": "#e8edf3",
        "soft": "#9aa7b6",
        "grid": "#2b3542",
        "accent": "#6fb1f2",
        "second": "#f0a75a",
        "good": "#5fcf95",
        "bad": "#ff8a80",
    }
)


@dataclass(frozen=True)
class Box:
    x: float
    y: float
    width: float
    height: float
    fill: str
    title: str = ""  # what a pointer resting on it shows

    def moved(self, dx: float, dy: float) -> "Box":
        return replace(self, x=self.x + dx, y=self.y + dy)

    def svg(self) -> str:
        place = f'x="{self.x:.1f}" y="{self.y:.1f}" width="{self.width:.1f}" height="{self.height:.1f}"'
        title = f"<title>{escape(self.title)}</title>" if self.title else ""
        return f'<rect {place} fill="{_paint(self.fill)}">{title}</rect>'


@dataclass(frozen=True)
class Label:
    """`y` is the baseline; `anchor` says which end of the text `x` is: start, middle or end."""

    x: float
    y: float
    text: str
    size: float = 12
    anchor: str = "start"
    fill: str = "ink"

    def moved(self, dx: float, dy: float) -> "Label":
        return replace(self, x=self.x + dx, y=self.y + dy)

    def svg(self) -> str:
        place = f'x="{self.x:.1f}" y="{self.y:.1f}" font-size="{self.size:g}" text-anchor="{self.anchor}"'
        return f'<text {place} fill="{_paint(self.fill)}">{escape(self.text)}</text>'


@dataclass(frozen=True)
class Stroke:
    points: tuple[tuple[float, float], ...]
    colour: str = "accent"
    width: float = 2

    def moved(self, dx: float, dy: float) -> "Stroke":
        return replace(self, points=tuple((x + dx, y + dy) for x, y in self.points))

    def svg(self) -> str:
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in self.points)
        style = f'fill="none" stroke="{_paint(self.colour)}" stroke-width="{self.width:g}" stroke-linejoin="round"'
        return f'<polyline points="{points}" {style}/>'


Shape = Box | Label | Stroke


@dataclass(frozen=True)
class Picture:
    """`title` says to those who do not see it what it shows."""

    width: float
    height: float
    shapes: tuple[Shape, ...]
    title: str

    def svg(self) -> str:
        size = f'viewBox="0 0 {self.width:g} {self.height:g}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(self.title)}">'
        return "\n".join([head, *(shape.svg() for shape in self.shapes), "</svg>"])

    def moved(self, dx: float, dy: float) -> list[Shape]:
        return [shape.moved(dx, dy) for shape in self.shapes]


def mixed(ramp: Sequence[str], share: float) -> str:
    """The colour at `share` (0 to 1) of the way along evenly spaced "#rrggbb"."""
    place = min(max(share, 0.0), 1.0) * (len(ramp) - 1)
    index = min(int(place), len(ramp) - 2)
    pairs = zip(_channels(ramp[index]), _channels(ramp[index + 1]), strict=True)
    return "#" + "".join(f"{round(low + (high - low) * (place - index)):02x}" for low, high in pairs)


def readable_on(colour: str) -> str:
    """Black or white, whichever stands out on "#rrggbb"."""
    red, green, blue = _channels(colour)
    return "#10151b" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "#ffffff"


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _paint(colour: str) -> str:
    return colour if colour.startswith("#") else f"var(--{colour})"
