"""Markdown that is still being written, cut into blocks that are whole. It knows no terminal."""

from markdown_it import MarkdownIt
from markdown_it.token import Token

# HTML stays as it is written: an answer that speaks of `Vec<T>` or `<think>` means these very characters.
PARSER = MarkdownIt().enable(["strikethrough", "table"]).disable(["html_block", "html_inline"])


def parse(source: str) -> list[Token]:
    """Markdown as models write it: every line break within a paragraph is meant."""
    tokens = PARSER.parse(source)
    for token in tokens:
        for part in token.children or ():
            if part.type == "softbreak":
                part.type = "hardbreak"
    return tokens


class Blocks:
    """Text goes in by pieces; whole paragraphs, lists, code blocks come out, in order and nothing missing."""

    def __init__(self) -> None:
        self.pending = ""  # what may still change its meaning

    def feed(self, piece: str) -> str:
        """Source that is settled now: all blocks but the last, which may go on."""
        self.pending += piece
        if "\n" not in piece:
            return ""
        cut = _start_of_last(self.pending[: self.pending.rindex("\n")])
        lines = self.pending.split("\n")
        settled, rest = lines[:cut], lines[cut:]
        self.pending = "\n".join(rest)
        return "".join(f"{line}\n" for line in settled)


def _start_of_last(source: str) -> int:
    """The line on which the last block at the top level begins."""
    starts = [token.map[0] for token in PARSER.parse(source) if token.level == 0 and token.map is not None]
    return starts[-1] if starts else 0
