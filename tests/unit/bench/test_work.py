"""Bytes and operations of a pass, counted by hand."""

from pathlib import Path

import pytest
import torch

from polybit import spec
from polybit.bench.work import bits_per_weight, cache_bytes, operations, weight_bytes
from unit.bench.subjects import synthetic

# Two blocks of q, o [128, 128], k, v [128, 64], gate, up [128, 256], down [256, 128].
WEIGHTS = 2 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 256)


def test_a_step_reads_all_matrices_as_stored(tmp_path: Path) -> None:
    subject = synthetic(tmp_path)
    stored = [subject.stored(linear) for linear in (*subject.model.linears, subject.model.head.linear)]
    expected = sum(tensor.num_bytes for tensor in stored if not isinstance(tensor, torch.Tensor))
    assert weight_bytes(subject.model, subject.stored_bits, 1) == pytest.approx(expected, rel=1e-9)
    assert weight_bytes(subject.model, lambda linear: 8, 64) == 15


def test_bits_per_weight_are_the_decoders(tmp_path: Path) -> None:
    model = synthetic(tmp_path).model
    assert bits_per_weight(model, lambda linear: 3 * linear.in_features * linear.out_features) == 3.0


def test_operations_leave_the_head_out(tmp_path: Path) -> None:
    assert operations(synthetic(tmp_path).model, 10) == 2 * 10 * WEIGHTS


def test_experts_count_as_often_as_they_are_used(tmp_path: Path) -> None:
    mixture = {"architectures": ["MixtralForCausalLM"], "num_local_experts": 8, "num_experts_per_tok": 2}
    model = synthetic(tmp_path, **mixture).model

    def in_experts(num_tokens: int) -> float:
        return 8 * weight_bytes(model, lambda linear: float("experts" in linear.key), num_tokens)

    assert in_experts(1) == pytest.approx(2 * 3 * 2)  # two blocks, three matrices, two experts
    assert in_experts(2) == pytest.approx(2 * 3 * 8 * (1 - 0.75**2))
    assert in_experts(1000) == pytest.approx(2 * 3 * 8)


def two_bytes(attn: spec.Attention) -> int:
    return 2 * 2 * attn.num_kv_heads * attn.head_dim


def test_a_window_bounds_what_is_read_of_the_cache(tmp_path: Path) -> None:
    assert cache_bytes(synthetic(tmp_path).model, 100, two_bytes) == 2 * 2 * 2 * 64 * 100
    mistral = {"architectures": ["MistralForCausalLM"], "sliding_window": 30}
    assert cache_bytes(synthetic(tmp_path, **mistral).model, 100, two_bytes) == 2 * 2 * 2 * 64 * 30
