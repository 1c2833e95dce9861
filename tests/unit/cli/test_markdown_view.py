"""Answers on a terminal: what a reader sees at the end is the whole answer, formatted, whatever was drawn between."""

import io
import re
from contextlib import suppress

import pytest
from rich.console import Console

from polybit.cli.markdown_view import MarkdownView
from unit.cli.screen import screen_of

ANSWER = """# Sorting

Use **sorted**, see [the manual](https://example.org/sort):

```python
def largest(values: list[int]) -> int:
    return sorted(values)[-1]
```

1. first
2. second

Roses are red,
violets are <blue>.
"""


def shown(answer: str, size: int = 5, height: int = 24) -> str:
    """All that is written to a terminal while `answer` comes in pieces of `size` characters."""
    console = Console(
        file=io.StringIO(), force_terminal=True, color_system="truecolor", width=50, height=height, _environ={}
    )
    with MarkdownView(console) as show:
        for begin in range(0, len(answer), size):
            show(answer[begin : begin + size])
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("height", [6, 24])
def test_the_whole_answer_stands_there_once(size: int, height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polybit.cli.markdown_view.REFRESH_SECONDS", 0.0)
    lines = [line.strip() for line in screen_of(shown(ANSWER, size, height), height)]
    assert [line.strip(" ┃┏┓┗┛━") for line in lines if line.strip(" ┃┏┓┗┛━")] == [
        "Sorting",
        "Use sorted, see the manual",
        "(https://example.org/sort):",
        "def largest(values: list[int]) -> int:",
        "return sorted(values)[-1]",
        "1 first",
        "2 second",
        "Roses are red,",
        "violets are <blue>.",
    ]


def test_code_has_colours_and_strong_words_are_bold() -> None:
    written = shown(ANSWER)
    assert re.search(r"\x1b\[[0-9;]*38;2;[0-9;]*m(def|return)\b", written)
    assert re.search(r"\x1b\[1[0-9;]*msorted", written)


def test_text_shows_while_its_paragraph_is_not_done() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=50, height=24, _environ={})
    with MarkdownView(console) as show:
        show("half a sent")
        assert isinstance(console.file, io.StringIO)
        assert "half a sent" in "\n".join(screen_of(console.file.getvalue()))


def test_an_answer_cannot_steer_the_terminal() -> None:
    written = shown("red \x1b[31m\x07 \x9b31m end")
    assert "\x07" not in written
    assert "\x1b[31m" not in written
    assert "red [31m 31m end" in "\n".join(screen_of(written))


def test_a_reader_that_was_interrupted_keeps_what_was_said() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=50, height=24, _environ={})
    with suppress(KeyboardInterrupt), MarkdownView(console) as show:
        show("first\n\nhalf a sent")
        raise KeyboardInterrupt
    assert isinstance(console.file, io.StringIO)
    assert [line for line in screen_of(console.file.getvalue()) if line] == ["first", "half a sent"]
