"""Puts a report's files into the converted folder."""

import logging
from pathlib import Path

from polybit.format.files import atomic_write_text
from polybit.quantizer.report.card import CARD, card
from polybit.quantizer.report.charts import summary
from polybit.quantizer.report.findings import Findings
from polybit.quantizer.report.page import page
from polybit.quantizer.report.png import can_draw, write_png

log = logging.getLogger(__name__)

PAGE, PICTURE = "report.html", "report.png"


def write_report(findings: Findings, folder: Path, source_card: str) -> None:
    """report.html; report.png where it can be drawn; and README.md, unless the model is garbage. FormatError: disk."""
    atomic_write_text(folder / PAGE, page(findings))
    picture = PICTURE if can_draw() else None
    if picture is None:
        log.info("no %s beside %s: that takes pip install 'polybit[report]'", PICTURE, PAGE)
    else:
        write_png(summary(findings), folder / picture)
    if findings.test is None or findings.test.fault is None:
        atomic_write_text(folder / CARD, card(findings, source_card, PAGE, picture))
