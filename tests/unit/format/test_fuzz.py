"""Damaged input of every kind: it reads, or one of the project's errors refuses it. Nothing else may come out."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from polybit.errors import PolybitError
from polybit.format import exl2, gptq
from polybit.format.checkpoint import Checkpoint
from polybit.format.dense import read_dense
from polybit.format.gguf import export
from polybit.spec import Linear, Source
from unit.format.exl2_cases import Case, cases
from unit.format.gguf_cases import make

KEY = "layer"
Tensors = dict[str, torch.Tensor]
Damage = Callable[[bytes], bytes]


@contextmanager
def folder() -> Iterator[Path]:
    with TemporaryDirectory() as name:
        yield Path(name)


# ---- bytes


@st.composite
def byte_damage(draw: st.DrawFn, reach: int | None = None) -> Damage:
    """Some bytes overwritten, dropped or put in, within the first `reach`; perhaps an end that is missing."""
    at = st.floats(0, 1, exclude_max=True)
    patches = draw(st.lists(st.tuples(at, st.binary(max_size=9), st.integers(0, 9)), max_size=4))
    kept = draw(st.one_of(st.just(1.0), at))

    def apply(data: bytes) -> bytes:
        for where, patch, replaced in patches:
            start = int(where * min(len(data), reach or len(data)))
            data = data[:start] + patch + data[start + replaced :]
        return data[: int(kept * len(data))]

    return apply


def sound_safetensors() -> bytes:
    return save(
        {f"{KEY}.weight": torch.ones(4, 6), f"{KEY}.bias": torch.ones(4).half(), "b": torch.ones(2, dtype=torch.int16)}
    )


def read_everything(files: Checkpoint) -> None:
    for name in files.names():
        with suppress(PolybitError):
            assert files.tensor(name).shape == files.shape(name)
    for source in (None, Source(KEY, 1, 3), Source(KEY, 0, 2, axis=1, runs=3, transposed=True)):
        with suppress(PolybitError):
            read_dense(files, Linear(KEY, 6, 4, bias=True, source=source))


@given(damage=byte_damage())
def test_safetensors_of_damaged_bytes(damage: Damage) -> None:
    with folder() as path, suppress(PolybitError):
        (path / "model.safetensors").write_bytes(damage(sound_safetensors()))
        read_everything(Checkpoint.open(path))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@given(field=st.sampled_from(["dtype", "shape", "data_offsets", "other"]), value=json_values, length=st.integers(-9, 9))
def test_safetensors_of_damaged_headers(field: str, value: Any, length: int) -> None:
    data = sound_safetensors()
    body_at = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:body_at])
    header[f"{KEY}.weight"][field] = value
    text = json.dumps(header).encode()
    with folder() as path, suppress(PolybitError):
        (path / "model.safetensors").write_bytes((len(text) + length).to_bytes(8, "little") + text + data[body_at:])
        read_everything(Checkpoint.open(path))


# ---- sets of tensors


@st.composite
def damaged_tensors(draw: st.DrawFn, sound: Tensors) -> Tensors:
    """A sound set with tensors dropped, cut, turned over, retyped or with other numbers in them."""
    tensors = dict(sound)
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(tensors)))
        tensors[name] = draw(damaged_tensor(tensors[name]))
        if draw(st.integers(0, 9)) == 0:
            del tensors[name]
    return tensors


@st.composite
def damaged_tensor(draw: st.DrawFn, tensor: torch.Tensor) -> torch.Tensor:
    match draw(st.sampled_from(["number", "cut", "grow", "type", "shape"])):
        case "number" if tensor.numel():
            flat = tensor.flatten().clone()
            number = draw(st.integers(-128, 127) | st.sampled_from([2, 3, 4, 5, 6, 8]))
            flat[draw(st.integers(0, flat.numel() - 1))] = number
            return flat.reshape(tensor.shape)
        case "cut" if tensor.dim():
            axis = draw(st.integers(0, tensor.dim() - 1))
            return tensor.narrow(axis, 0, draw(st.integers(0, tensor.shape[axis])))
        case "grow" if tensor.dim():
            return torch.cat([tensor, tensor], dim=draw(st.integers(0, tensor.dim() - 1)))
        case "type":
            return tensor.to(
                draw(st.sampled_from([torch.float16, torch.float32, torch.int16, torch.int32, torch.int64]))
            )
        case _:
            return tensor[None] if draw(st.booleans()) else tensor.flatten()


def write(path: Path, tensors: Tensors) -> Checkpoint:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "model.safetensors")
    return Checkpoint.open(path)


@given(data=st.data(), case=cases(columns=st.just(32)))
@settings(max_examples=60)
def test_exl2_of_damaged_tensors(data: st.DataObject, case: Case) -> None:
    sound = exl2.to_tensors(KEY, case.encode())
    tensors = data.draw(damaged_tensors(sound))
    in_features = case.layout.in_features
    expected = data.draw(st.sampled_from([None, Linear(KEY, in_features, 32), Linear(KEY, in_features, 24, bias=True)]))
    with folder() as path, suppress(PolybitError):
        tensor = exl2.read(write(path, tensors), KEY, expected)
        assert exl2.dequantize(tensor).shape == (tensor.in_features, tensor.out_features)


@given(data=st.data())
@settings(max_examples=60)
def test_gptq_of_damaged_tensors(data: st.DataObject) -> None:
    sound = {
        f"{KEY}.qweight": torch.arange(8 * 32, dtype=torch.int32).reshape(8, 32),
        f"{KEY}.qzeros": torch.full((4, 4), 0x77777777, dtype=torch.int32),
        f"{KEY}.scales": torch.ones(4, 32).half(),
        f"{KEY}.g_idx": (torch.arange(64) % 4).int(),
        f"{KEY}.bias": torch.ones(32).half(),
    }
    tensors = data.draw(damaged_tensors(sound))
    expected = data.draw(st.sampled_from([None, Linear(KEY, 64, 32), Linear(KEY, 64, 32, bias=True)]))
    with folder() as path, suppress(PolybitError):
        tensor = gptq.read(write(path, tensors), KEY, expected)
        assert gptq.dequantize(tensor).shape == (tensor.in_features, tensor.out_features)


# ---- GGUF


@cache
def sound_gguf(arch: str) -> bytes:
    with folder() as path:
        return make(arch).write(path / "m.gguf").read_bytes()


def export_bytes(data: bytes) -> None:
    with folder() as path, suppress(PolybitError):
        (path / "m.gguf").write_bytes(data)
        export(path / "m.gguf", path / "out")


@given(arch=st.sampled_from(["llama", "gemma3"]), damage=byte_damage(reach=1200))
@settings(max_examples=60)
def test_gguf_of_damaged_settings(arch: str, damage: Damage) -> None:
    export_bytes(damage(sound_gguf(arch)))


@given(arch=st.sampled_from(["llama", "gemma3"]), damage=byte_damage(reach=20_000))
@settings(max_examples=60)
def test_gguf_of_damaged_bytes(arch: str, damage: Damage) -> None:
    export_bytes(damage(sound_gguf(arch)))


@given(data=st.data())
@settings(max_examples=60)
def test_gguf_of_other_values(data: st.DataObject) -> None:
    case = make(data.draw(st.sampled_from(["llama", "qwen2", "gemma2", "gemma3", "phi3"])))
    values: st.SearchStrategy[Any] = st.one_of(
        st.integers(0, 2**32 - 1),
        st.integers(0, 64),
        st.floats(width=32),
        st.text(max_size=3),
        st.booleans(),
        st.lists(st.integers(0, 9), min_size=1, max_size=3),
    )
    for part in (case.settings, case.tokenizer):
        part[data.draw(st.sampled_from(sorted(part)))] = data.draw(values)
    with folder() as path, suppress(PolybitError):
        export(case.write(path / "m.gguf"), path / "out")
