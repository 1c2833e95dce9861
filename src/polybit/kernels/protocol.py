"""What a kernel backend is: a module with these functions. Its import list is its capability table.

Axes: T tokens in a step, S sequences, Hq/Hkv query and key/value heads, D head dim, E hidden, K/N in/out features of a
matrix, V vocabulary, P tokens a page, M pages a sequence. Ops compute in fp32 inside and return their
input's dtype unless they say otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, device, dtype

from polybit.format.exl2 import Exl2Tensor, Layout
from polybit.format.gptq import GptqTensor
from polybit.kernels.pages import Pages
from polybit.spec import Activation


class Matrix(Protocol):
    """A weight matrix laid out for one backend: what `prepare_*` returns. Opaque to everyone else.

    It is a dataclass, and tensors in it, however deep in dataclasses and tuples, are all of its memory: layers that
    live in RAM are rebuilt over copies of them, at other addresses.
    """

    @property
    def in_features(self) -> int: ...

    @property
    def out_features(self) -> int:
        """Padding included."""

    @property
    def num_bytes(self) -> int:
        """Device memory held."""


@dataclass(frozen=True)
class HeadNorm:
    """RMSNorm of each head, as `rms_norm`; weight [D]."""

    weight: Tensor
    eps: float
    offset: float


@dataclass(frozen=True)
class Rotation:
    """Rope by tables of cos and sin [L, dim/2], as `rope`."""

    cos: Tensor
    sin: Tensor
    interleaved: bool


class Backend(Protocol):
    """Every op that a forward pass needs. A backend that lacks one re-exports it from `reference`, visibly."""

    NAME: str
    NATIVE_OPS: frozenset[str]  # ops of this backend's own; the others are another's
    DEVICES: frozenset[str]  # types of torch devices that it serves
    KEPT_BYTES: int  # of a GPU's memory that its kernels keep for themselves between calls, at most
    READS_PACKED: frozenset[str]  # "exl2", "gptq": products of few rows read the words, and are no faster dequantized
    READS_QUANTIZED_PAGES: bool  # attention reads them as they are, about as fast as others
    HOLDS_SCORES: bool  # attention of prompts holds a number for each query and key, as the reference's does

    def prepare_dense(self, weight: Tensor, device: device, dtype: dtype) -> Matrix:
        """weight [N, K] as checkpoints store it."""

    def prepare_exl2(self, tensor: Exl2Tensor, prescale: float, device: device, dtype: dtype, unpacked: bool) -> Matrix:
        """unpacked: hold the dequantized matrix in `dtype`, for speed where no kernel is fused, not the words."""

    def prepare_gptq(self, tensor: GptqTensor, prescale: float, device: device, dtype: dtype, unpacked: bool) -> Matrix:
        """As prepare_exl2, for a GPTQ matrix."""

    def exl2_bytes(self, layout: Layout, out_features: int, dtype: dtype) -> int:
        """Device memory of what prepare_exl2 makes of such a matrix, packed; out_features with padding."""

    def join(self, matrices: Sequence[Matrix]) -> Matrix | None:
        """One matrix for several of one input, whose outputs follow one another; None where nothing is gained by it."""

    def matmul(self, x: Tensor, matrix: Matrix, residual: Tensor | None = None) -> Tensor:
        """x [T, K] -> [T, N] in x's dtype; with a residual [T, N], their sum in the residual's."""

    def norm_matmul(self, x: Tensor, weight: Tensor, eps: float, offset: float, matrix: Matrix) -> Tensor:
        """matmul of rms_norm(x), x [T, K] and weight [K] -> [T, N] in the weight's dtype."""

    def gated_matmul(
        self, gate: Tensor, up: Tensor, activation: Activation, matrix: Matrix, residual: Tensor | None = None
    ) -> Tensor:
        """matmul of gated_activate(gate, up), both [T, K]."""

    def dequantize(self, matrix: Matrix) -> Tensor:
        """[K, N] in the dtype that the matrix was prepared for."""

    def embedding(self, tokens: Tensor, weight: Tensor, scale: float) -> Tensor:
        """tokens [T] int64, weight [V, E] of any float type -> rows times scale, [T, E] fp32"""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
        """x [..., W], weight broadcastable to it: x / sqrt(mean(x^2) + eps) * (weight + offset)."""

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        """x [..., W], weight and bias broadcastable to it."""

    def activate(self, x: Tensor, activation: Activation) -> Tensor:
        """Element-wise."""

    def gated_activate(self, gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        """act(gate) * up, [T, F]"""

    def rope(
        self, q: Tensor, k: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, interleaved: bool
    ) -> tuple[Tensor, Tensor]:
        """q [T, Hq, D] and k [T, Hkv, D] with the first `dim` features of each head rotated.

        positions [T] are rows of cos and sin [L, dim/2], which are fp32.
        """

    def write_kv(self, k: Tensor, v: Tensor, k_pages: Pages, v_pages: Pages, slots: Tensor) -> None:
        """Store k and v [T, Hkv, D] at slots [T] of pages [pages, P, Hkv, D], in the pages' dtype or quantized.

        A slot is page * P + offset.
        """

    def attention(
        self,
        q: Tensor,
        k_pages: Pages,
        v_pages: Pages,
        page_table: Tensor,
        query_starts: Tensor,
        lengths: Tensor,
        max_queries: int,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Causal attention of the last tokens of S sequences over their pages.

        q [T, Hq, D]; k_pages, v_pages [pages, P, Hkv, D]; page_table [S, M], query_starts [S + 1], lengths [S] int32:
        sequence s owns queries query_starts[s]:query_starts[s+1], at most max_queries, the last of its lengths[s]
        tokens. -> [T, Hq, D]
        """

    def decode_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        k_pages: Pages,
        v_pages: Pages,
        page_table: Tensor,
        lengths: Tensor,
        q_norm: HeadNorm | None,
        k_norm: HeadNorm | None,
        rotation: Rotation | None,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Everything between the products of a decode step: norms, rope, write_kv and attention.

        q [S, Hq, D], k and v [S, Hkv, D] belong to the last token of each sequence, at position lengths[s] - 1, and are
        neither normed nor turned; its key and value are stored in its page. -> [S, Hq, D]

        Nothing else that it reads may come from the launch right before it, which may still be at work.
        """
