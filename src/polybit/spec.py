"""What a decoder-only transformer IS, as frozen data: every matrix, norm and rotary table, by name and shape.

One description, many readers: the builder, the weight loader, the quantizer (which matrices share an input), the memory
plan and `inspect` all read it. `arch/` writes it from a config.json. It holds no tensors and imports no torch.

Names are the ones that EXL2 files use ("internal" names). Where an unquantized checkpoint names or fuses things
otherwise, `Model.renames` and `Linear.source` say how to get from its names to these.
"""

import enum
from collections.abc import Iterator
from dataclasses import dataclass, replace


class Activation(enum.Enum):
    """The non-linearity of an MLP."""

    SILU = "silu"
    GELU = "gelu"  # exact, with erf
    GELU_TANH = "gelu_tanh"
    RELU = "relu"


# ---- matrices and vectors


@dataclass(frozen=True)
class Source:
    """Where a matrix lies in a larger tensor `{key}.weight` of an unquantized checkpoint (its bias in `{key}.bias`).

    Axis `axis` of the stored tensor is cut into `runs` equal runs, rows [start, stop) of each run are taken and joined,
    and the result is transposed if the checkpoint stores [in, out].
    """

    key: str
    start: int
    stop: int
    axis: int = 0
    runs: int = 1
    transposed: bool = False


@dataclass(frozen=True)
class Linear:
    """y = x W + bias with W of [in_features, out_features]; stored as EXL2, as GPTQ, or as a plain `{key}.weight`."""

    key: str
    in_features: int
    out_features: int
    bias: bool = False
    prescale: float = 1.0  # multiplies the weights at load; files are never prescaled (format section 6.4)
    source: Source | None = None

    @property
    def padded_out_features(self) -> int:
        """Columns of the quantized matrix: out_features rounded up to a multiple of 32 (format section 6.3)."""
        return -(-self.out_features // 32) * 32


@dataclass(frozen=True)
class Embedding:
    """Rows of `{key}.weight`, never quantized; the looked-up row is multiplied by `scale`."""

    key: str
    num_rows: int
    width: int
    scale: float = 1.0


@dataclass(frozen=True)
class RMSNorm:
    """x / rms(x) * (weight + offset) over the last `width` features; `{key}.weight`."""

    key: str
    width: int
    eps: float
    offset: float = 0.0  # 1.0 in Gemma, which stores weight - 1


@dataclass(frozen=True)
class LayerNorm:
    """(x - mean(x)) / std(x) * weight + bias over the last `width` features; `{key}.weight`, `{key}.bias`."""

    key: str
    width: int
    eps: float
    bias: bool = False


Norm = RMSNorm | LayerNorm


# ---- rotary position embedding


@dataclass(frozen=True)
class Unscaled:
    """The plain table: theta^(-2i/dim)."""


@dataclass(frozen=True)
class LinearScaling:
    """Positions divided by `factor`."""

    factor: float


@dataclass(frozen=True)
class DynamicNtkScaling:
    """NTK scaling by the context length at load, none up to `original_length`."""

    factor: float
    original_length: int


@dataclass(frozen=True)
class Llama3Scaling:
    """Long wavelengths divided by `factor`, short ones kept, a ramp between them (Llama 3.1)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_length: int


@dataclass(frozen=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071): a ramp between interpolated and kept frequencies, and a scale on attention logits."""

    factor: float
    original_length: int
    attention_factor: float  # multiplies cos and sin
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True  # round the ramp's ends to whole dimensions


@dataclass(frozen=True)
class LongRopeScaling:
    """LongRoPE (arXiv 2402.13753): one divisor a frequency; the long list where the context exceeds the original."""

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_length: int
    attention_factor: float  # multiplies cos and sin with either list


RopeScaling = Unscaled | LinearScaling | DynamicNtkScaling | Llama3Scaling | YarnScaling | LongRopeScaling


@dataclass(frozen=True)
class Rope:
    """Rotation of the first `dim` features of each head by position.

    Pairs are (i, i + dim/2), or (2i, 2i + 1) where `interleaved`. Multimodal rope (Qwen2-VL) is this one for text.
    """

    theta: float
    dim: int
    interleaved: bool = False
    scaling: RopeScaling = Unscaled()

    def with_ntk(self, alpha: float) -> "Rope":
        """Theta multiplied by alpha^(dim / (dim - 2)): the longest wavelength grows by alpha, the shortest stays."""
        return self if self.dim == 2 else replace(self, theta=self.theta * alpha ** (self.dim / (self.dim - 2)))


# ---- the parts of a block


@dataclass(frozen=True)
class Attention:
    """Causal grouped-query attention. softcap: c * tanh(logit / c). window: tokens that a query sees, with itself."""

    q: Linear
    k: Linear
    v: Linear
    o: Linear
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float  # of the logits, before softcap
    rope: Rope | None
    q_norm: Norm | None = None  # per head where width == head_dim, else over all heads
    k_norm: Norm | None = None
    window: int | None = None
    softcap: float | None = None
    clip_qkv: float | None = None  # q, k and v are clamped to +- this

    @property
    def linears(self) -> tuple[Linear, ...]:
        return (self.q, self.k, self.v, self.o)


@dataclass(frozen=True)
class GatedMlp:
    """down(act(gate(x)) * up(x))"""

    gate: Linear
    up: Linear
    down: Linear
    activation: Activation

    @property
    def linears(self) -> tuple[Linear, ...]:
        return (self.gate, self.up, self.down)


@dataclass(frozen=True)
class PlainMlp:
    """down(act(up(x)))"""

    up: Linear
    down: Linear
    activation: Activation

    @property
    def linears(self) -> tuple[Linear, ...]:
        return (self.up, self.down)


@dataclass(frozen=True)
class SparseMoe:
    """Each token goes through its `top_k` experts, weighted by a softmax over the router's logits.

    The router `{router_key}.weight` [experts, hidden] is never quantized. `renormalise`: the chosen weights sum to 1.
    """

    router_key: str
    experts: tuple[GatedMlp, ...]
    top_k: int
    renormalise: bool

    @property
    def linears(self) -> tuple[Linear, ...]:
        return tuple(linear for expert in self.experts for linear in expert.linears)


Mlp = GatedMlp | PlainMlp | SparseMoe


# ---- blocks and the whole model


@dataclass(frozen=True)
class SequentialBlock:
    """x += post(attn(pre(x))), then x += post(mlp(pre(x))); any of the four norms may be absent."""

    attn_norm: Norm | None
    attn: Attention
    attn_post_norm: Norm | None
    mlp_norm: Norm | None
    mlp: Mlp
    mlp_post_norm: Norm | None


@dataclass(frozen=True)
class ParallelBlock:
    """x += attn(norm(x)) + mlp(norm(x))"""

    norm: Norm
    attn: Attention
    mlp: GatedMlp | PlainMlp


Block = SequentialBlock | ParallelBlock


@dataclass(frozen=True)
class Head:
    """Logits. `tied`: an unquantized checkpoint may lack `{linear.key}.weight`, meaning the embedding's matrix."""

    linear: Linear
    tied: bool
    softcap: float | None = None
    normalise_rows: bool = False  # L2-normalise the unquantized rows (baked into quantized files)


@dataclass(frozen=True)
class Model:
    """A whole model.

    `renames`: ordered (old, new) substring replacements on a checkpoint's tensor names; a leading `^` in old binds it
    to the name's start; they change nothing in names that are internal already.
    """

    architecture: str
    embedding: Embedding
    positions: Embedding | None  # learned position embedding, added to the token embedding
    blocks: tuple[Block, ...]
    norm: Norm
    head: Head
    max_seq_len: int
    renames: tuple[tuple[str, str], ...] = ()
    companions: tuple[str, ...] = ()  # name prefixes of other parts' tensors (a vision tower): conversions copy them
    needs_bos: bool = False  # the model degrades badly without a BOS token in front
    fp32_residual: bool = False  # the residual stream leaves the range of fp16

    @property
    def hidden_size(self) -> int:
        return self.embedding.width

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Every quantizable matrix of the decoder blocks, in file order; the head is not among them."""
        return tuple(linear for block in self.blocks for linear in (*block.attn.linears, *block.mlp.linears))


@dataclass(frozen=True)
class SharedInput:
    """Matrices that multiply the same activations, and so share one Hessian and one activation order."""

    linears: tuple[Linear, ...]


def shared_inputs(block: Block) -> Iterator[SharedInput]:
    """The groups of `block`'s matrices by input, in the order in which a forward pass meets them."""
    attn_in = (block.attn.q, block.attn.k, block.attn.v)
    attn_out = SharedInput((block.attn.o,))
    match block:
        case ParallelBlock():
            yield SharedInput(attn_in + mlp_inputs(block.mlp))
            yield attn_out
        case SequentialBlock():
            yield SharedInput(attn_in)
            yield attn_out
            yield SharedInput(mlp_inputs(block.mlp))
    match block.mlp:
        case SparseMoe(experts=experts):
            yield from (SharedInput((expert.down,)) for expert in experts)
        case GatedMlp(down=down) | PlainMlp(down=down):
            yield SharedInput((down,))


def mlp_inputs(mlp: Mlp) -> tuple[Linear, ...]:
    """The matrices that read the MLP's own input."""
    match mlp:
        case GatedMlp(gate=gate, up=up):
            return (gate, up)
        case PlainMlp(up=up):
            return (up,)
        case SparseMoe(experts=experts):
            return tuple(linear for expert in experts for linear in (expert.gate, expert.up))


def block_norms(block: Block) -> tuple[Norm, ...]:
    """The norms that `block` has, head norms included."""
    match block:
        case SequentialBlock():
            around = (block.attn_norm, block.attn_post_norm, block.mlp_norm, block.mlp_post_norm)
        case ParallelBlock():
            around = (block.norm, None, None, None)
    return tuple(norm for norm in (*around, block.attn.q_norm, block.attn.k_norm) if norm is not None)
