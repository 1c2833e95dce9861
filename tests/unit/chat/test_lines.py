"""Lines become messages."""

import pytest

from polybit.chat.lines import read_message


def messages(text: str) -> list[str]:
    lines = iter(text.splitlines())

    def read_line(continuing: bool) -> str:
        asked.append(continuing)
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    asked: list[bool] = []
    found = []
    while True:
        try:
            found.append(read_message(read_line))
        except EOFError:
            return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one\n two \n\nthree", ["one", "two", "", "three"]),
        ('"""one\n  two\n\nthree"""\nfour', ["one\n  two\n\nthree", "four"]),
        ('"""\none\n"""', ["one"]),
        ('"""one"""', ["one"]),
        ('"""one\ntwo', ["one\ntwo"]),
        ('"""', [""]),
        ('say """ twice', ['say """ twice']),
        ("", []),
    ],
)
def test_three_quotes_make_lines_one_message(text: str, expected: list[str]) -> None:
    assert messages(text) == expected
