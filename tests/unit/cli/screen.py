"""What a terminal shows: the few control sequences that programs here use, carried out on a list of lines."""

import re

TOKEN = re.compile(r"\x1b\[(\?[0-9]+|[0-9;]*)([A-Za-z])|\x1b\][^\x07]*\x07|[\r\n]|[^\x1b\r\n]+")


def screen_of(written: str, height: int = 24) -> list[str]:
    """Every line ever scrolled through a terminal of `height` lines, without trailing spaces.

    Raises ValueError for a sequence that it does not know.
    """
    lines, row, column = [""], 0, 0
    for token in TOKEN.finditer(written):
        text, number, kind = token[0], token[1], token[2]
        if text == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif text == "\r":
            column = 0
        elif kind == "A":
            row = max(0, len(lines) - height, row - int(number or 1))
        elif kind == "K":
            lines[row] = "" if number == "2" else lines[row][:column]
        elif kind is None and not text.startswith("\x1b"):
            lines[row] = lines[row].ljust(column)[:column] + text + lines[row][column + len(text) :]
            column += len(text)
        elif kind is not None and kind not in "mhlJ":
            raise ValueError(f"unknown sequence {text!r}")
    return [line.rstrip() for line in lines]
