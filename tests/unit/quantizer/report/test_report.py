"""Pages, pictures and cards of made-up findings: well formed, complete, and honest about what they do not know."""

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from polybit.model.evaluate import Score
from polybit.quantizer.report import write
from polybit.quantizer.report.card import card
from polybit.quantizer.report.charts import bits_map, drift_chart, error_map, nats_bars, summary
from polybit.quantizer.report.findings import Findings, Matrix
from polybit.quantizer.report.page import page
from polybit.quantizer.report.picture import Box, Label, mixed, readable_on
from polybit.quantizer.report.words import duration, number, percent
from polybit.quantizer.report.write import write_report
from polybit.quantizer.tested import Sample, SelfTest

ROLES = ("q", "k", "v", "o", "gate", "up", "down")
VOID = {"meta", "br", "rect", "polyline"}
TEST = SelfTest(
    score=Score(12.5, 1020, 0.1234, 0.004, 0.87),
    source_perplexity=11.25,
    drift=(0.1, 0.2, 0.25),
    matrix_errors={"a": 0.1},
    allowed=0.5,
    sample=Sample("Tags & <b>?", "A <script>alert(1)</script> answer", is_chat=True),
)


def matrices(layers: int) -> tuple[Matrix, ...]:
    return tuple(
        Matrix(layer, role, 1, 1000 + row, 2.5 + row / 4, 0.01 * (layer + row))
        for layer in range(layers)
        for row, role in enumerate(ROLES)
    )


FINDINGS = Findings(
    name="Some-Model <1B>",
    base_model="owner/Some-Model",
    architecture="LlamaForCausalLM",
    num_layers=3,
    bits=3.98765,
    head_bits=6.1,
    source_bytes=2_000_000_000,
    result_bytes=600_000_000,
    matrices=matrices(3),
    predicted=0.0711,
    test=TEST,
    calibration={
        "rows": 16,
        "length": 512,
        "dataset": "my text.txt",
        "tokens_by_source": {"poems": 6000, "code": 2000},
        "sha256": "0123abcd" * 8,
    },
    seconds={"forward": 10.0, "quantize": 30.0},
    settings={"bits": "4", "method": "gptq-loss"},
    machine="cpu (2 threads), rounding by numba",
    version="9.8.7",
)
SOURCE_CARD = """---
license: other
license_name: some-licence
license_link: https://example.com/licence
language:
- en
tags: [mine]
---

# Some-Model

What its makers say.
"""


class Reader(HTMLParser):
    """Refuses elements that are not closed in order; gathers tables as rows of texts, attributes and words."""

    def __init__(self) -> None:
        super().__init__()
        self.open = list[str]()
        self.rows = list[list[str]]()
        self.attributes = list[tuple[str, str | None]]()
        self.counts = dict[str, int]()
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.attributes += attrs
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID - {"rect"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data
        if self.open and "tr" in self.open:
            self.rows[-1][-1] += data


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def front_matter(text: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = yaml.safe_load(text.split("---")[1])
    return found


# ---- the page


def test_the_page_is_well_formed_and_has_a_row_for_every_matrix() -> None:
    reader = read(page(FINDINGS))
    wanted = [
        [str(m.layer), m.role, f"{m.num_weights:,}", f"{m.bits:.3f}", f"{m.error:.1%}"] for m in FINDINGS.matrices
    ]
    assert [row for row in reader.rows if len(row) == 5][1:] == wanted
    assert ["poems", "6,000", "75%"] in reader.rows
    assert ["quantize", "30.0", "75%"] in reader.rows
    assert ["method", "gptq-loss"] in reader.rows


def test_the_page_says_what_was_found() -> None:
    words = read(page(FINDINGS)).words
    for figure in ("3.988", "0.1234", "± 0.0040", "0.0711", "12.50", "11.25", "87.0%", "600 MB", "2.00 GB", "40 s"):
        assert figure in words
    assert "Self-test passed" in words
    assert "A <script>alert(1)</script> answer" in words


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing() -> None:
    reader = read(page(FINDINGS))
    assert reader.counts.get("script", 0) == reader.counts.get("link", 0) == reader.counts.get("img", 0) == 0
    assert not [name for name, _ in reader.attributes if name in ("src", "href") or name.startswith("on")]
    assert "url(" not in page(FINDINGS)
    assert "@import" not in page(FINDINGS)


def test_pictures_speak_to_those_who_do_not_see_them() -> None:
    reader = read(page(FINDINGS))
    labels = [value for name, value in reader.attributes if name == "aria-label"]
    assert len(labels) == reader.counts["svg"]
    assert all(labels)
    assert ("lang", "en") in reader.attributes


def test_both_themes_have_every_colour() -> None:
    text = page(FINDINGS)
    light, dark = text.split("prefers-color-scheme: dark", 1)
    for name in ("paper", "ink", "soft", "grid", "accent", "good", "bad"):
        assert f"--{name}: #" in light
        assert f"--{name}: #" in dark


def test_a_failed_test_is_the_first_thing_said() -> None:
    failed = replace(TEST, score=replace(TEST.score, kl=math.nan, perplexity=math.nan), drift=(0.1, math.nan, math.nan))
    broken = replace(FINDINGS.matrices[8], error=math.nan)
    words = read(page(replace(FINDINGS, test=failed, matrices=(*FINDINGS.matrices[:8], broken)))).words
    assert "Self-test failed: the model computes NaN or infinity, first in layer 1" in words
    assert "not a number" in words
    assert "Self-test passed" not in words


def test_without_a_test_nothing_is_claimed() -> None:
    words = read(page(replace(FINDINGS, test=None, predicted=None))).words
    assert "Converted without a self-test" in words
    assert "perplexity" not in words


# ---- the pictures


@pytest.mark.parametrize("layers", [1, 3, 40, 126])
def test_a_map_has_a_cell_for_every_matrix_inside_its_frame(layers: int) -> None:
    findings = replace(FINDINGS, num_layers=layers, matrices=matrices(layers))
    for picture in (bits_map(findings), error_map(findings)):
        cells = [shape for shape in picture.shapes if isinstance(shape, Box) and shape.title]
        assert len({cell.title for cell in cells}) == len(cells) == 7 * layers
        assert all(cell.x >= 0 and cell.x + cell.width <= picture.width for cell in cells)
        assert all(0 <= shape.y <= picture.height for shape in picture.shapes if isinstance(shape, Box | Label))


def test_darker_is_more() -> None:
    colours = [shape.fill for shape in bits_map(FINDINGS).shapes if isinstance(shape, Box) and "layer 0" in shape.title]
    brightness = [sum(int(colour[i : i + 2], 16) for i in (1, 3, 5)) for colour in colours]
    assert brightness == sorted(brightness, reverse=True)
    assert len(set(brightness)) == len(brightness)


def test_what_was_not_measured_has_no_cell_and_what_is_no_number_stands_out() -> None:
    one, other = replace(FINDINGS.matrices[0], error=None), replace(FINDINGS.matrices[1], error=math.nan)
    picture = error_map(replace(FINDINGS, matrices=(one, other, *FINDINGS.matrices[2:])))
    cells = [shape for shape in picture.shapes if isinstance(shape, Box) and shape.title]
    assert len(cells) == len(FINDINGS.matrices) - 1
    assert [cell.title for cell in cells if cell.fill == "bad"] == ["layer 0, k: not a number"]


def test_bars_are_as_long_as_their_numbers() -> None:
    bars = [shape for shape in nats_bars(0.1, 0.2, 0.4).shapes if isinstance(shape, Box)]
    assert [bar.width / bars[0].width for bar in bars] == pytest.approx([1, 2, 4])
    assert len([s for s in nats_bars(None, math.nan, 0.4).shapes if isinstance(s, Box)]) == 1


def test_a_curve_leaves_out_what_is_no_number() -> None:
    assert len([s for s in drift_chart((0.1, 0.3, math.nan)).shapes if isinstance(s, Box)]) == 2
    assert drift_chart((0.1,)).shapes
    assert drift_chart((math.nan,)).shapes


def test_colours() -> None:
    assert mixed(("#000000", "#0000ff"), 0.5) in ("#00007f", "#000080")
    assert (mixed(("#000000", "#0000ff"), -1), mixed(("#000000", "#0000ff"), 2)) == ("#000000", "#0000ff")
    assert readable_on("#fdf0e4") == "#10151b"
    assert readable_on("#0b2f63") == "#ffffff"


def test_words() -> None:
    assert (number(1234.5678, 2), percent(0.123), percent(math.inf)) == ("1,234.57", "12.3%", "not a number")
    assert (duration(9.6), duration(156), duration(7260)) == ("10 s", "2 min 36 s", "2 h 1 min")


# ---- the card


def test_the_card_s_front_matter_is_what_the_hub_reads() -> None:
    front = front_matter(card(FINDINGS, SOURCE_CARD, "report.html", "report.png"))
    assert (front["base_model"], front["base_model_relation"]) == ("owner/Some-Model", "quantized")
    assert (front["license"], front["license_name"]) == ("other", "some-licence")
    assert front["license_link"] == "https://example.com/licence"
    assert front["language"] == ["en"]
    assert "exl2" in front["tags"]
    assert "mine" not in front["tags"]


def test_the_card_has_the_figures_and_the_source_s_words() -> None:
    text = card(FINDINGS, SOURCE_CARD, "report.html", "report.png")
    assert "| KL divergence from the source, nats | 0 | **0.1234** ± 0.0040 |" in text
    assert "| perplexity | 11.25 | 12.50 |" in text
    assert "(report.png)" in text
    assert "polybit.load(" in text
    assert "from exllamav2 import" in text
    assert "[some-licence](https://example.com/licence)" in text
    assert text.rstrip().endswith("What its makers say.")


@pytest.mark.parametrize("source_card", ["", "no front matter", "---\n: [broken\n---\nwords", "---\n- a list\n---\n"])
def test_a_card_without_much_to_go_on(source_card: str) -> None:
    text = card(replace(FINDINGS, base_model=None, test=None), source_card, "report.html", None)
    front = front_matter(text)
    assert "license" not in front
    assert "base_model" not in front
    assert "quality was not measured" in text
    assert "report.png" not in text


# ---- the files


def test_the_files_of_a_report(tmp_path: Path) -> None:
    Image = pytest.importorskip("PIL.Image")
    write_report(FINDINGS, tmp_path, SOURCE_CARD)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "report.html", "report.png"]
    picture, drawn = summary(FINDINGS), Image.open(tmp_path / "report.png")
    assert drawn.size == (round(2 * picture.width), round(2 * picture.height))
    cell = next(
        shape for shape in picture.shapes if isinstance(shape, Box) and shape.title == "layer 2, down: 4.00 bits"
    )
    pixel = drawn.getpixel((round(2 * cell.x) + 3, round(2 * cell.y) + 3))
    assert "#" + "".join(f"{channel:02x}" for channel in pixel) == cell.fill


def test_without_pillow_there_is_no_png_and_the_log_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(write, "can_draw", lambda: False)
    caplog.set_level(logging.INFO)
    write_report(FINDINGS, tmp_path, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "report.html"]
    assert "polybit[report]" in caplog.text


def test_garbage_gets_no_card(tmp_path: Path) -> None:
    write_report(replace(FINDINGS, test=replace(TEST, allowed=0.1)), tmp_path, SOURCE_CARD)
    assert not (tmp_path / "README.md").exists()
    assert (tmp_path / "report.html").exists()
