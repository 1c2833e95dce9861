import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from polybit.errors import FormatError
from polybit.format.gguf_header import Metadata, read_header
from unit.format.gguf_cases import make


def test_agrees_with_the_gguf_library(tmp_path: Path) -> None:
    case = make("gemma3")
    case.general = {"quantized_by": "é", "flags": [True, False], "alignment": 64}
    path = case.write(tmp_path / "m.gguf")
    header, library = read_header(path), GGUFReader(path)
    assert list(header.tensors) == [tensor.name for tensor in library.tensors]
    for tensor in library.tensors:
        info = header.tensors[tensor.name]
        assert (info.shape, info.type_id) == (tuple(tensor.shape.tolist()[::-1]), tensor.tensor_type)
        assert info.offset == tensor.data_offset
    metadata = header.metadata
    assert metadata.texts("tokenizer.ggml.tokens") == library.fields["tokenizer.ggml.tokens"].contents()
    assert metadata.reals("tokenizer.ggml.scores") == library.fields["tokenizer.ggml.scores"].contents()
    assert metadata.text("general.quantized_by") == "é"
    assert np.float32(metadata.real("gemma3.attention.layer_norm_rms_epsilon")) == np.float32(1e-5)


def test_metadata_is_read_by_type() -> None:
    metadata = Metadata("m.gguf", {"n": 3, "x": 0.5, "s": "text", "b": True, "l": [1, 2], "mixed": [1, "a"], "neg": -1})
    assert (metadata.count("n"), metadata.real("n"), metadata.real("x")) == (3, 3.0, 0.5)
    assert (metadata.text("s"), metadata.flag("b", False), metadata.counts("l")) == ("text", True, [1, 2])
    assert (metadata.count("gone", 7), metadata.flag("gone", True)) == (7, True)
    for read, finding in [
        (lambda: metadata.count("x"), r"metadata x is 0\.5, expected a number"),
        (lambda: metadata.count("b"), "metadata b is True, expected a number"),
        (lambda: metadata.count("neg"), "metadata neg is -1, expected 0 or more"),
        (lambda: metadata.text("l"), "metadata l is a list of 2, expected a text"),
        (lambda: metadata.texts("mixed"), "metadata mixed is a list of mixed"),
        (lambda: metadata.text("gone"), "metadata gone is missing"),
    ]:
        with pytest.raises(FormatError, match=finding):
            read()


def test_metadata_knows_what_nobody_asked_for() -> None:
    metadata = Metadata("m.gguf", {"llama.a": 1, "llama.b": 2, "general.c": 3})
    metadata.count("llama.a")
    assert metadata.unread("llama.") == ["llama.b"]


def raw(version: int = 3, tensors: int = 0, keys: int = 0, body: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + body


def named(name: bytes, rest: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + rest


TWICE = named(b"k", struct.pack("<IB", 0, 1)) * 2


@pytest.mark.parametrize(
    ("data", "finding"),
    [
        (b"", "cannot be read: cannot mmap an empty file"),
        (b"GG", "is not a GGUF file"),
        (b"PK\x03\x04" * 8, "is not a GGUF file"),
        (b"GGUF", "ends at byte 4, inside its header"),
        (raw(version=1), "GGUF of version 1"),
        (raw(version=3 << 24), "or big-endian"),
        (raw(keys=1), "ends at byte 24, inside its header"),
        (raw(keys=2**60, body=TWICE), "holds metadata key 'k' twice"),
        (raw(keys=1, body=named(b"\xff", b"")), "a text at byte 24 that is not UTF-8"),
        (raw(keys=1, body=named(b"k", struct.pack("<I", 99))), "a value of unknown type 99"),
        (raw(keys=1, body=named(b"k", struct.pack("<IIQ", 9, 9, 1))), "a value of unknown type 9 "),  # list of lists
        (raw(keys=1, body=named(b"k", struct.pack("<IIQ", 9, 4, 2**62))), "inside its header"),
        (raw(keys=1, body=named(b"k", struct.pack("<IIQ", 9, 8, 2**62))), "inside its header"),
        (raw(tensors=1, body=named(b"t", struct.pack("<I", 5))), "a tensor of 5 dimensions"),
    ],
)
def test_damage_is_named(tmp_path: Path, data: bytes, finding: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=finding) as error:
        read_header(path)
    assert str(path) in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="No such file"):
        read_header(tmp_path / "typo.gguf")
