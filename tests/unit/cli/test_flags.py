"""Settings dataclasses as options: nothing missing, defaults kept, values arrive."""

from dataclasses import dataclass, field, fields
from typing import Annotated

import pytest
import typer

from polybit.cli.flags import Flag, option_parameters, settings
from polybit.cli.shared_options import LOADING, SAMPLING
from polybit.generator.params import SamplingParams
from polybit.model.options import LoadOptions


@dataclass(frozen=True)
class Settings:
    size: int = field(default=3, metadata={"help": "how big"})
    names: tuple[str, ...] = field(default=(), metadata={"help": "what it is called"})
    fast: bool = field(default=False, metadata={"help": "hurry"})
    safe: bool | None = None
    scale: float | None = None


FLAGS = {"safe": Flag("take care", default="on weekdays"), "scale": Flag("stretch", short="-s")}


@pytest.fixture
def call() -> typer.Typer:
    app = typer.Typer(add_completion=False)
    app.received = []

    @app.command()
    @settings(Settings, "Things", FLAGS)
    def command(word: Annotated[str, typer.Argument()], chosen: Settings) -> None:
        app.received.append((word, chosen))

    return app


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], Settings()),
        (["--size", "5"], Settings(size=5)),
        (["--names", "a", "--names", "b"], Settings(names=("a", "b"))),
        (["--fast"], Settings(fast=True)),
        (["--safe"], Settings(safe=True)),
        (["--no-safe"], Settings(safe=False)),
        (["-s", "0.5"], Settings(scale=0.5)),
    ],
)
def test_options_fill_the_dataclass(call: typer.Typer, arguments: list[str], expected: Settings) -> None:
    call(["word", *arguments], standalone_mode=False)
    assert call.received == [("word", expected)]


def test_a_switch_that_is_off_cannot_be_turned_off(call: typer.Typer) -> None:
    with pytest.raises(typer.BadParameter.__mro__[1], match="--no-fast"):
        call(["word", "--no-fast"], standalone_mode=False)


def test_help_is_a_sentence_and_defaults_of_none_are_explained() -> None:
    options = {p.name: p.annotation.__metadata__[0] for p in option_parameters(Settings, "Things", FLAGS)}
    assert options["size"].help == "How big."
    assert options["safe"].show_default == "on weekdays"
    assert options["fast"].show_default is False


@pytest.mark.parametrize(("kind", "flags"), [(LoadOptions, LOADING), (SamplingParams, SAMPLING)])
def test_every_setting_has_an_option_with_help(kind: type, flags: dict[str, Flag]) -> None:
    names = [parameter.name for parameter in option_parameters(kind, "", flags)]
    assert names == [f.name for f in fields(kind) if "no_option" not in f.metadata]
    assert set(flags) <= set(names)
