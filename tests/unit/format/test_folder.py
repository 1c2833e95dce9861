import json
from pathlib import Path

import pytest

from polybit.errors import FormatError
from polybit.format.folder import copy_companions, patched_config, write_config

CALIBRATION = {"rows": 100, "length": 2048, "dataset": "(default)", "sha256": "00"}


def test_config_gains_one_key_and_keeps_the_rest(tmp_path: Path) -> None:
    source = {"model_type": "llama", "name": "é", "quantization_config": {"quant_method": "gptq"}}
    write_config(tmp_path, patched_config(source, 4, 6, CALIBRATION, "1.2.3"))
    text = (tmp_path / "config.json").read_text(encoding="ascii")
    assert json.loads(text) == source | {
        "quantization_config": {
            "quant_method": "exl2",
            "version": "1.2.3",
            "bits": 4.0,
            "head_bits": 6,
            "calibration": CALIBRATION,
        }
    }
    assert '    "quantization_config": {\n        "quant_method": "exl2"' in text
    assert '"bits": 4.0,' in text
    assert source["quantization_config"] == {"quant_method": "gptq"}


def test_copies_all_but_weights_and_config(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    target.mkdir()
    kept = {"tokenizer.json", "chat_template.jinja", "LICENSE", "tokenizer.model"}
    left = {
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "a.GGUF",
        ".hidden",
    }
    (source / "original").mkdir(parents=True)
    for name in kept | left:
        (source / name).write_bytes(name.encode())
    copied = copy_companions(source, target)
    assert {path.name for path in copied} == kept == {path.name for path in target.iterdir()}
    assert all(path.read_bytes() == path.name.encode() for path in copied)


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cannot be listed"):
        copy_companions(tmp_path / "gone", tmp_path)
