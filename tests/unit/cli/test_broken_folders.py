"""Model folders broken on purpose: each is one line that names the culprit, exit code 2, and nothing on stdout."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from unit.cli.program import Polybit


def edit_config(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def truncate(name: str) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return cut


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str) -> Callable[[Path], None]:
    def put(folder: Path) -> None:
        (folder / name).write_text(text)

    return put


BREAKAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (remove("config.json"), "config.json"),
    "config is no JSON": (write("config.json", "{"), "config.json is not valid JSON"),
    "config is a list": (write("config.json", "[]"), "expected a JSON object"),
    "unknown architecture": (edit_config(architectures=["LlamaForCausalML"]), "LlamaForCausalLM"),
    "a key that nobody reads": (edit_config(secret_sauce=7), "secret_sauce"),
    "wrong shape": (edit_config(intermediate_size=128), "expected"),
    "no weights": (remove("model.safetensors"), "no *.safetensors"),
    "truncated weights": (truncate("model.safetensors"), "model.safetensors"),
    "weights that are no safetensors": (write("model.safetensors", "hello"), "model.safetensors"),
    "no tokenizer": (remove("tokenizer.json"), "no tokenizer.json"),
    "truncated tokenizer": (truncate("tokenizer.json"), "tokenizer.json"),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_generate_says_what_is_broken(polybit_cli: Polybit, model_folder: Path, tmp_path: Path, name: str) -> None:
    damage, culprit = BREAKAGES[name]
    folder = tmp_path / "broken"
    shutil.copytree(model_folder, folder)
    damage(folder)
    result = polybit_cli("-q", "generate", folder, "-p", "hello", "-n", "1", "--device", "cpu")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert culprit in result.err


@pytest.mark.parametrize("command", [("generate", "-p", "x"), ("chat",), ("inspect",), ("eval", "--text", "x")])
def test_every_command_refuses_a_folder_that_is_not_there(
    polybit_cli: Polybit, tmp_path: Path, command: tuple[str, ...]
) -> None:
    result = polybit_cli("-q", command[0], tmp_path / "nowhere", *command[1:])
    assert (result.code, result.out) == (2, "")
    assert "nowhere is not a folder" in result.err
