"""The pictures of a report, each from what was found; all as wide as a page."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate

from polybit.amounts import gigabytes
from polybit.quantizer.report.findings import Findings, Matrix
from polybit.quantizer.report.picture import Box, Label, Picture, Shape, Stroke, mixed, readable_on
from polybit.quantizer.report.words import number

WIDTH = 920.0
MARGIN = 52.0  # left of cells and curves, for their labels
CELL_HEIGHT, WIDEST_CELL, LABELLED_CELL = 24.0, 40.0, 21.0
BLUES = ("#e6f0fb", "#a3c9ee", "#4c92d4", "#1d5fa9", "#0b2f63")
REDS = ("#fdf0e4", "#f8bf94", "#ea7350", "#b52d40", "#5f1038")
PARTS = ("#1f6fbf", "#d9822b", "#3f9b6c", "#8a5fb5", "#c2506b", "#7d8794", "#b59a2f", "#2f9aa8")

Value = Callable[[Matrix], float | None]


# ---- maps: layers across, matrices down


def bits_map(findings: Findings) -> Picture:
    found = [matrix.bits for matrix in findings.matrices]
    scale = math.floor(min(found) * 2) / 2, math.ceil(max(found) * 2) / 2
    return _map(findings, lambda m: m.bits, scale, BLUES, "{:.1f}", "{:.2f} bits", "bits a weight of every matrix")


def error_map(findings: Findings) -> Picture:
    found = [m.error for m in findings.matrices if m.error is not None and math.isfinite(m.error)]
    scale = 0.0, math.ceil(max(found, default=0.1) * 20) / 20
    return _map(findings, lambda m: m.error, scale, REDS, "{:.0%}", "{:.1%} off", "error of every matrix's output")


def _map(
    findings: Findings,
    value: Value,
    scale: tuple[float, float],
    ramp: Sequence[str],
    short: str,
    long: str,
    title: str,
) -> Picture:
    """`short` and `long` are formats of a value: inside its cell, and beside a pointer."""
    width = min(WIDEST_CELL, (WIDTH - MARGIN) / findings.num_layers)
    rows = {role: row for row, role in enumerate(findings.roles)}
    shapes: list[Shape] = [
        Label(MARGIN - 8, (row + 0.5) * CELL_HEIGHT + 4, role, anchor="end") for role, row in rows.items()
    ]
    for matrix in findings.matrices:
        corner = MARGIN + matrix.layer * width, rows[matrix.role] * CELL_HEIGHT
        shapes += _cell(matrix, value(matrix), corner, width, scale, ramp, short, long)
    bottom = len(rows) * CELL_HEIGHT
    shapes += _layer_numbers(findings.num_layers, width, bottom + 15)
    shapes += _legend(scale, ramp, short, bottom + 26)
    return Picture(WIDTH, bottom + 44, tuple(shapes), f"{title}, matrices down, layers across")


def _cell(
    matrix: Matrix,
    value: float | None,
    corner: tuple[float, float],
    width: float,
    scale: tuple[float, float],
    ramp: Sequence[str],
    short: str,
    long: str,
) -> Iterator[Shape]:
    (x, y), where = corner, f"layer {matrix.layer}, {matrix.role}"
    if value is None:
        return
    if not math.isfinite(value):
        yield Box(x, y, width - 1, CELL_HEIGHT - 1, "bad", f"{where}: not a number")
        return
    low, high = scale
    colour = mixed(ramp, (value - low) / (high - low) if high > low else 0.5)
    yield Box(x, y, width - 1, CELL_HEIGHT - 1, colour, f"{where}: {long.format(value)}")
    if width >= LABELLED_CELL:
        text = short.format(value).removesuffix("%")
        yield Label(x + (width - 1) / 2, y + CELL_HEIGHT / 2 + 3.5, text, 10, "middle", readable_on(colour))


def _layer_numbers(count: int, width: float, y: float) -> Iterator[Label]:
    apart = next(step for step in (1, 2, 5, 10, 20, 50) if step * width >= LABELLED_CELL)
    for layer in range(0, count, apart):
        yield Label(MARGIN + (layer + 0.5) * width, y, str(layer), 10, "middle", "soft")


def _legend(scale: tuple[float, float], ramp: Sequence[str], form: str, y: float) -> Iterator[Shape]:
    low, high = scale
    yield Label(MARGIN, y + 11, form.format(low), 11, fill="soft")
    for step in range(40):
        yield Box(MARGIN + 32 + step * 4, y + 2, 4.6, 10, mixed(ramp, step / 39))
    yield Label(MARGIN + 32 + 168, y + 11, form.format(high), 11, fill="soft")


# ---- the error on its way through the layers


def drift_chart(drift: Sequence[float]) -> Picture:
    height, finite = 150.0, [error for error in drift if math.isfinite(error)]
    top = math.ceil(max(finite, default=0.1) * 10) / 10 or 0.1
    width = (WIDTH - MARGIN - 10) / max(1, len(drift) - 1)
    points = tuple((MARGIN + i * width, height * (1 - error / top)) for i, error in enumerate(drift)
                   if math.isfinite(error))  # fmt: skip
    shapes = list[Shape]()
    for share in (0.0, 0.5, 1.0):
        y = height * (1 - share)
        shapes.append(Stroke(((MARGIN, y), (WIDTH - 10, y)), "grid", 1))
        shapes.append(Label(MARGIN - 8, y + 4, f"{share * top:.0%}", 11, "end", "soft"))
    shapes.append(Stroke(points))
    shapes += [Box(x - 2.5, y - 2.5, 5, 5, "accent", f"after layer {i}: {error:.1%} off")
               for i, ((x, y), error) in enumerate(zip(points, finite, strict=True))]  # fmt: skip
    apart = next((step for step in (1, 2, 5, 10, 20, 50) if step * width >= LABELLED_CELL), 50)
    shapes += [
        Label(MARGIN + i * width, height + 18, str(i), 10, "middle", "soft") for i in range(0, len(drift), apart)
    ]
    shapes = [shape.moved(0, 8) for shape in shapes]
    return Picture(WIDTH, height + 34, tuple(shapes), "relative error of the states after each layer")


# ---- bars


def nats_bars(predicted: float | None, measured: float, allowed: float) -> Picture:
    """The KL divergence that was foreseen, that was found, and that passes."""
    named = {"predicted": (predicted, "soft"), "measured": (measured, "accent"), "allowed": (allowed, "grid")}
    told = {name: (nats, fill) for name, (nats, fill) in named.items() if nats is not None and math.isfinite(nats)}
    top, room = max(nats for nats, _ in told.values()), WIDTH - 180
    shapes = list[Shape]()
    for row, (name, (nats, fill)) in enumerate(told.items()):
        y, length = row * 28.0, max(1.0, room * nats / top)
        shapes.append(Label(78, y + 15, name, 12, "end"))
        shapes.append(Box(88, y, length, 20, fill, f"{name}: {nats:.4f} nats"))
        shapes.append(Label(96 + length, y + 15, f"{nats:.4f}", 12))
    return Picture(WIDTH, 28.0 * len(told), tuple(shapes), "KL divergence from the source in nats")


def share_bar(parts: Mapping[str, float], title: str) -> Picture:
    """One bar in parts as long as their numbers; the table beside it names them by colour."""
    total = sum(parts.values()) or 1.0
    starts = accumulate(parts.values(), initial=0.0)
    shapes = tuple(
        Box(
            WIDTH * start / total,
            0,
            max(0.0, WIDTH * part / total - 1),
            26,
            colour_of(i),
            f"{name}: {part / total:.0%}",
        )
        for i, ((name, part), start) in enumerate(zip(parts.items(), starts, strict=False))
    )
    return Picture(WIDTH, 26, shapes, title)


def colour_of(part: int) -> str:
    return PARTS[part % len(PARTS)]


# ---- the whole as one picture


def summary(findings: Findings) -> Picture:
    """What fits into one picture, to be shown where nobody opens a page."""
    shapes: list[Shape] = [
        Box(0, 0, WIDTH + 80, 10_000, "paper"),
        Label(40, 58, findings.title, 26),
        Label(40, 84, _facts(findings), 14, fill="soft"),
    ]
    y = 122.0
    for heading, picture in _summarized(findings):
        shapes.append(Label(40, y, heading, 15))
        shapes += picture.moved(40, y + 14)
        y += picture.height + 52
    height = y - 10
    shapes[0] = Box(0, 0, WIDTH + 80, height, "paper")
    return Picture(WIDTH + 80, height, tuple(shapes), findings.title)


def _summarized(findings: Findings) -> Iterator[tuple[str, Picture]]:
    yield "Bits a weight, matrix by matrix through the layers", bits_map(findings)
    if findings.test is not None:
        yield "Error of each matrix's output, in percent", error_map(findings)
        yield "Error of the states after each layer", drift_chart(findings.test.drift)


def _facts(findings: Findings) -> str:
    sizes = f"{gigabytes(findings.source_bytes)} to {gigabytes(findings.result_bytes)}"
    test = findings.test
    if test is None:
        return sizes
    perplexity = f"perplexity {test.source_perplexity:.2f} to {number(test.score.perplexity, 2)}"
    return f"{sizes}   ·   KL {number(test.nats)} nats   ·   {perplexity}   ·   same favourite {test.score.top1:.1%}"
