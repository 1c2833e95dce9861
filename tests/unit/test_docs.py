"""The documentation holds what it promises: links lead somewhere, generated parts are current, examples parse."""

import ast
import dataclasses
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from polybit.cli.main import app
from polybit.generator.params import SHAPES, SamplingParams

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
BLOCK = re.compile(r"```\n(.*?)```", re.DOTALL)
COMMAND = re.compile(r"^ *polybit (.*)$", re.MULTILINE)


def relative_links(page: Path) -> list[str]:
    return [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in relative_links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        targets = {(page.parent / link.partition("#")[0]).resolve() for link in relative_links(page)}
        waiting += [target for target in targets if target.suffix == ".md" and target not in reached]
    assert reached >= {page for page in PAGES if page.name != "CHANGELOG.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_examples_parse(page: Path) -> None:
    for example in PYTHON.findall(page.read_text(encoding="utf-8")):
        ast.parse(example)


def test_commands_in_the_documentation_exist() -> None:
    program = typer.main.get_command(app)
    known = {
        name: {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for name, command in program.commands.items()
    }
    for page in (page for page in PAGES if page.name != "cli.md"):  # which holds usage lines, written from the commands
        for block in BLOCK.findall(page.read_text(encoding="utf-8")):
            for line in COMMAND.findall(block):
                name, *words = shlex.split(line, comments=True)
                assert name in known, f"{page.name}: polybit {line}"
                options = {word for word in words if word.startswith("-")}
                assert options <= known[name], f"{page.name}: polybit {line}"


@pytest.mark.parametrize("script", sorted((ROOT / "docs").glob("write_*.py")), ids=lambda script: script.name)
def test_generated_parts_are_current(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [str(script), "--check"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert not ended.value.code, f"run: python docs/{script.name}"


@pytest.mark.parametrize("field", dataclasses.fields(SamplingParams), ids=lambda field: field.name)
def test_every_sampling_parameter_is_explained_with_its_default(field: dataclasses.Field[Any]) -> None:
    pages = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("sampling.md", "structured-output.md")]
    if field.name in SHAPES:
        assert f"`{field.name}=" in pages[1]
        return
    rows = [line for line in pages[0].splitlines() if re.match(rf"\| [^|]*`{field.name}`", line)]
    assert len(rows) == 1
    names, default = (cell.strip() for cell in rows[0].split(" | ")[:2])
    if isinstance(field.default, int | float | None):
        position = re.findall("`(.*?)`", names).index(field.name)
        assert default.split(", ")[position] == f"{field.default}".removesuffix(".0")
