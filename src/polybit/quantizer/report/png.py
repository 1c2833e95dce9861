"""Pictures as PNG files, by Pillow, in the light colours."""

from pathlib import Path
from typing import Any

from polybit.format.files import replacing
from polybit.quantizer.report.picture import LIGHT, Box, Label, Picture, Shape, Stroke

SCALE = 2  # pixels a unit, for screens of today
ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}  # at the baseline


def can_draw() -> bool:
    """Whether Pillow is there, with the fonts that it brings."""
    try:
        from PIL import features
    except ImportError:
        return False
    return bool(features.check("freetype2"))


def write_png(picture: Picture, path: Path) -> None:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (round(picture.width * SCALE), round(picture.height * SCALE)), LIGHT["paper"])
    canvas = ImageDraw.Draw(image)
    for shape in picture.shapes:
        _draw(canvas, shape)
    with replacing(path) as temporary:
        image.save(temporary, format="PNG", optimize=True)


def _draw(canvas: Any, shape: Shape) -> None:
    match shape:
        case Box(x=x, y=y, width=width, height=height, fill=fill):
            corners = [round(edge * SCALE) for edge in (x, y, x + width, y + height)]
            canvas.rectangle((*corners[:2], corners[2] - 1, corners[3] - 1), fill=_paint(fill))
        case Label(x=x, y=y, text=text, size=size, anchor=anchor, fill=fill):
            canvas.text((x * SCALE, y * SCALE), text, _paint(fill), _font(size), ANCHORS[anchor])
        case Stroke(points=points, colour=colour, width=width):
            line = [(x * SCALE, y * SCALE) for x, y in points]
            canvas.line(line, _paint(colour), round(width * SCALE), joint="curve")


def _font(size: float) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size * SCALE)


def _paint(colour: str) -> str:
    return colour if colour.startswith("#") else LIGHT[colour]
