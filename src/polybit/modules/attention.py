"""Attention of one block: projections, head norms, rope, the store, the backend's attention op."""

from dataclasses import dataclass

from torch import Tensor

from polybit import spec
from polybit.kernels.protocol import Backend
from polybit.modules.norm import build_head_norm
from polybit.modules.rope import RopeTable, RopeTables
from polybit.modules.step import KVStore, Step
from polybit.modules.weights import JointFn, LinearFn, NormFn, Weights


@dataclass(frozen=True)
class Attention:
    node: spec.Attention
    layer: int
    qkv: JointFn
    o: LinearFn
    q_norm: NormFn | None
    k_norm: NormFn | None
    rope_table: RopeTable | None
    backend: Backend

    def __call__(self, x: Tensor, step: Step, store: KVStore, residual: Tensor | None = None) -> Tensor:
        """x [T, E], not normed yet -> [T, E], added to the residual if there is one."""
        node = self.node
        q, k, v = self.qkv(x)
        q, k = self._rotate(
            step,
            self._heads(q, node.num_heads, self.q_norm),
            self._heads(k, node.num_kv_heads, self.k_norm),
        )
        v = self._clip(v).view(-1, node.num_kv_heads, node.head_dim)
        store.write(self.layer, k, v, step)
        k_pages, v_pages = store.pages(self.layer)
        mixed = self.backend.attention(
            q,
            k_pages,
            v_pages,
            step.page_table,
            step.query_starts,
            step.lengths,
            step.max_queries,
            node.scale,
            node.window,
            node.softcap,
        )
        return self.o(mixed.flatten(1), residual)

    def _heads(self, projected: Tensor, num_heads: int, norm: NormFn | None) -> Tensor:
        """[T, H D] -> [T, H, D]"""
        heads = self._clip(projected).view(-1, num_heads, self.node.head_dim)
        return heads if norm is None else norm(heads)

    def _rotate(self, step: Step, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """q [T, Hq, D] and k [T, Hkv, D] by their positions; as they are where the block has no rope."""
        rope, table = self.node.rope, self.rope_table
        if rope is None or table is None:
            return q, k
        cos, sin = table.up_to(step.max_length)
        return self.backend.rope(q, k, step.positions, cos, sin, rope.interleaved)

    def _clip(self, projected: Tensor) -> Tensor:
        limit = self.node.clip_qkv
        return projected if limit is None else projected.clamp(-limit, limit)


def build_attention(
    node: spec.Attention, layer: int, norm: NormFn | None, weights: Weights, backend: Backend, ropes: RopeTables
) -> Attention:
    """`norm` comes before it."""
    return Attention(
        node=node,
        layer=layer,
        qkv=weights.joint((node.q, node.k, node.v), norm),
        o=weights.linear(node.o),
        q_norm=build_head_norm(node.q_norm, node.head_dim, weights, backend),
        k_norm=build_head_norm(node.k_norm, node.head_dim, weights, backend),
        rope_table=None if node.rope is None else ropes.of(node.rope),
        backend=backend,
    )
