"""Attention of one block: projections, head norms, rope, the store, the backend's attention op."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from polybit import spec
from polybit.kernels.protocol import Backend
from polybit.modules.norm import NormFn, build_head_norm
from polybit.modules.step import KVStore, Step
from polybit.modules.weights import LinearFn, Weights

RopeTables = Callable[[spec.Rope], tuple[Tensor, Tensor]]  # cos and sin, [max_seq_len, dim / 2] each


@dataclass(frozen=True)
class Attention:
    node: spec.Attention
    layer: int
    q: LinearFn
    k: LinearFn
    v: LinearFn
    o: LinearFn
    q_norm: NormFn | None
    k_norm: NormFn | None
    rope_table: tuple[Tensor, Tensor] | None
    backend: Backend

    def __call__(self, x: Tensor, step: Step, store: KVStore) -> Tensor:
        """x [T, E] -> [T, E]; the residual is the caller's."""
        node = self.node
        q = self._heads(self.q(x), node.num_heads, self.q_norm, step)
        k = self._heads(self.k(x), node.num_kv_heads, self.k_norm, step)
        v = self._clip(self.v(x)).view(-1, node.num_kv_heads, node.head_dim)
        store.write(self.layer, k, v, step)
        k_pages, v_pages = store.pages(self.layer)
        mixed = self.backend.attention(
            q,
            k_pages,
            v_pages,
            step.page_table,
            step.query_starts,
            step.lengths,
            node.scale,
            node.window,
            node.softcap,
        )
        return self.o(mixed.flatten(1))

    def _heads(self, projected: Tensor, num_heads: int, norm: NormFn | None, step: Step) -> Tensor:
        heads = self._clip(projected).view(-1, num_heads, self.node.head_dim)
        if norm is not None:
            heads = norm(heads)
        if self.node.rope is None or self.rope_table is None:
            return heads
        cos, sin = self.rope_table
        return self.backend.rope(heads, cos[step.positions], sin[step.positions], self.node.rope.interleaved)

    def _clip(self, projected: Tensor) -> Tensor:
        limit = self.node.clip_qkv
        return projected if limit is None else projected.clamp(-limit, limit)


def build_attention(
    node: spec.Attention, layer: int, weights: Weights, backend: Backend, ropes: RopeTables
) -> Attention:
    return Attention(
        node=node,
        layer=layer,
        q=weights.linear(node.q),
        k=weights.linear(node.k),
        v=weights.linear(node.v),
        o=weights.linear(node.o),
        q_norm=build_head_norm(node.q_norm, node.head_dim, weights, backend),
        k_norm=build_head_norm(node.k_norm, node.head_dim, weights, backend),
        rope_table=None if node.rope is None else ropes(node.rope),
        backend=backend,
    )
