"""Where a family keeps several matrices in one tensor: the parts, as slices of it in order."""

from dataclasses import replace

from polybit.spec import Attention, GatedMlp, Linear, Source


def slices(
    key: str, linears: tuple[Linear, ...], axis: int = 0, runs: int = 1, transposed: bool = False
) -> tuple[Linear, ...]:
    """`linears` as consecutive parts of `{key}.weight`, which repeats their order `runs` times along `axis`."""
    placed, start = [], 0
    for linear in linears:
        stop = start + linear.out_features // runs
        placed.append(replace(linear, source=Source(key, start, stop, axis, runs, transposed)))
        start = stop
    return tuple(placed)


def with_fused_qkv(attn: Attention, key: str, axis: int = 0, runs: int = 1, transposed: bool = False) -> Attention:
    q, k, v = slices(key, (attn.q, attn.k, attn.v), axis, runs, transposed)
    return replace(attn, q=q, k=k, v=v)


def with_fused_gate_up(mlp: GatedMlp, key: str) -> GatedMlp:
    gate, up = slices(key, (mlp.gate, mlp.up))
    return replace(mlp, gate=gate, up=up)
