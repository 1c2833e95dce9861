"""The package as others see it: what it exports, and versions that agree with each other."""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import polybit

ROOT = Path(__file__).parents[2]


def test_polybit_exports_what_type_checkers_are_told() -> None:
    tree = ast.parse(Path(polybit.__file__).read_text(encoding="utf-8"))
    told = {
        alias.name: getattr(importlib.import_module(node.module), alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("polybit")
        for alias in node.names
    }
    assert sorted(polybit.__all__) == sorted(told)
    assert all(getattr(polybit, name) is value for name, value in told.items())
    assert set(polybit.__all__) < set(dir(polybit))
    assert not hasattr(polybit, "nothing")


def test_the_program_starts_without_what_only_some_commands_need() -> None:
    script = (
        "import gc, sys, polybit.cli.main; polybit.load; "
        "print(gc.isenabled(), *({'huggingface_hub', 'numba'} & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    found = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert (found.stdout.strip(), found.stderr) == ("True", "")


@pytest.mark.parametrize("name", ["exllamav2", "exllamav2.generator"])
def test_the_drop_in_face_exports_what_it_lists(name: str) -> None:
    module = importlib.import_module(name)
    assert all(hasattr(module, exported) for exported in module.__all__)


def test_the_changelog_knows_this_version() -> None:
    assert f"## {polybit.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_dependency_is_pinned_within_its_range() -> None:
    project = described()
    wanted = [
        *project["dependencies"],
        *(text for texts in project["optional-dependencies"].values() for text in texts),
    ]
    pins = pinned()
    for requirement in map(Requirement, wanted):
        if requirement.name != "polybit":
            versions = pins[normalized(requirement.name)]
            assert all(version in requirement.specifier for version in versions), requirement


def test_every_extra_that_a_message_names_exists() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")]
    named = {extra for text in texts for extra in re.findall(r"polybit\[([\w-]+)\]", text)}
    assert "cpu" in named
    assert named <= set(described()["optional-dependencies"])


def described() -> dict[str, Any]:
    """`project` of pyproject.toml."""
    tomllib = pytest.importorskip("tomllib")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pinned() -> dict[str, list[str]]:
    """Versions by package out of constraints.txt; some have one for each Python version."""
    versions: dict[str, list[str]] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            pin = Requirement(line)
            assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), line
            versions.setdefault(normalized(pin.name), []).append(str(pin.specifier).removeprefix("=="))
    return versions


def normalized(name: str) -> str:
    return name.lower().replace("_", "-")
