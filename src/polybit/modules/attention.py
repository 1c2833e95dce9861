"""Attention of one block: projections, head norms, rope, the store, the backend's attention ops."""

from dataclasses import dataclass

from torch import Tensor

from polybit import spec
from polybit.kernels.protocol import Backend, HeadNorm, Rotation
from polybit.modules.norm import RmsNorm, build_head_norm
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
        q, k, v = map(self._heads, self.qkv(x))
        mix = self._decode if step.max_queries == 1 and store.is_written_by_ops else self._prefill
        return self.o(mix(q, k, v, step, store).flatten(1), residual)

    def _prefill(self, q: Tensor, k: Tensor, v: Tensor, step: Step, store: KVStore) -> Tensor:
        """q [T, Hq, D]; k and v [T, Hkv, D] -> [T, Hq, D]. Any number of tokens of each sequence."""
        node, rotation = self.node, self._rotation(step)
        q = q if self.q_norm is None else self.q_norm(q)
        k = k if self.k_norm is None else self.k_norm(k)
        if rotation is not None:
            q, k = self.backend.rope(q, k, step.positions, rotation.cos, rotation.sin, rotation.interleaved)
        store.write(self.layer, k, v, step)
        k_pages, v_pages = store.pages(self.layer)
        return self.backend.attention(
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

    def _decode(self, q: Tensor, k: Tensor, v: Tensor, step: Step, store: KVStore) -> Tensor:
        """As _prefill, of one token of each sequence."""
        node = self.node
        q, q_norm = _norm_or_leave(q, self.q_norm)
        k, k_norm = _norm_or_leave(k, self.k_norm)
        return self.backend.decode_attention(
            q,
            k,
            v,
            *store.pages(self.layer),
            step.page_table,
            step.lengths,
            q_norm,
            k_norm,
            self._rotation(step),
            node.scale,
            node.window,
            node.softcap,
        )

    def _heads(self, projected: Tensor) -> Tensor:
        """[T, H D] -> [T, H, D]"""
        limit, dim = self.node.clip_qkv, self.node.head_dim
        clipped = projected if limit is None else projected.clamp(-limit, limit)
        return clipped.view(-1, clipped.shape[1] // dim, dim)

    def _rotation(self, step: Step) -> Rotation | None:
        rope, table = self.node.rope, self.rope_table
        return None if rope is None or table is None else Rotation(*table.up_to(step.max_length), rope.interleaved)


def _norm_or_leave(heads: Tensor, norm: NormFn | None) -> tuple[Tensor, HeadNorm | None]:
    """The heads [T, H, D], and the norm that the op is still to do to each."""
    if norm is None:
        return heads, None
    if isinstance(norm, RmsNorm):
        return heads, HeadNorm(norm.weight, norm.eps, norm.offset)
    return norm(heads), None


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
