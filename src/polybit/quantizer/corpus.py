"""Text for calibration without a download: some prose of our own, then what any machine with Python holds.

What is found depends on the machine's Python and packages, and is the same at every run there.
"""

import ast
import importlib.metadata
import random
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

MIN_CHARACTERS = 600  # shorter documents are mostly titles and badges

Name = TypeVar("Name", str, Path)


def prose() -> Iterator[str]:
    """Passages written for this purpose, of the kinds that a machine lacks: encyclopedia, news, stories, advice."""
    yield from files(__package__).joinpath("prose.txt").read_text(encoding="utf-8").split("\n\n")


def language_reference() -> Iterator[str]:
    """Python's own help topics: technical prose, part of every CPython."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return
    for name in _shuffled(topics):
        yield topics[name]


def package_descriptions() -> Iterator[str]:
    """The long descriptions (READMEs) of installed packages."""
    found = {str(package.metadata["Name"]): package for package in importlib.metadata.distributions()}
    for name in _shuffled(found):
        _, _, description = (found[name].read_text("METADATA") or "").partition("\n\n")
        yield "\n".join(line for line in description.splitlines() if "://" not in line)  # badges and links


def docstrings() -> Iterator[str]:
    """The docstrings of the standard library, one document a module."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for text in _modules(seed=1):
        try:
            nodes = list(ast.walk(ast.parse(text)))
        except (SyntaxError, ValueError, RecursionError):
            continue
        found = (ast.get_docstring(node) for node in nodes if isinstance(node, documented))
        yield "\n\n".join(docstring for docstring in found if docstring)


def source_code() -> Iterator[str]:
    """The modules of the standard library."""
    return _modules(seed=2)


def _modules(seed: int) -> Iterator[str]:
    """Source texts of the standard library, tests and tables left out."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"test", "tests", "site-packages", "dist-packages", "pydoc_data", "encodings"}
    for path in _shuffled(root.rglob("*.py"), seed):
        if skipped.isdisjoint(path.relative_to(root).parts):
            try:
                yield path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue


# Each kind of text as config.json names it, and its weight; code comes last and makes up for what the others lack.
SOURCES: Mapping[str, tuple[int, Callable[[], Iterator[str]]]] = {
    "prose": (30, prose),
    "language reference": (5, language_reference),
    "package descriptions": (5, package_descriptions),
    "docstrings": (3, docstrings),
    "source code": (2, source_code),
}


def documents(source: Callable[[], Iterator[str]]) -> Iterator[str]:
    """The source's documents that are long enough."""
    return (text for text in (document.strip() for document in source()) if len(text) >= MIN_CHARACTERS)


def _shuffled(names: Iterable[Name], seed: int = 0) -> list[Name]:
    """In an order that has nothing to do with the alphabet but is the same at every run."""
    ordered = sorted(names)
    random.Random(seed).shuffle(ordered)
    return ordered
