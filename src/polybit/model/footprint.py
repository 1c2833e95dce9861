"""What the parts of a model take, in bytes, from names and shapes alone. Where they go is not decided here."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod

import torch

from polybit import spec
from polybit.format import exl2
from polybit.kernels.pages import FULL, KVBits, read_bits, row_bytes
from polybit.kernels.protocol import Backend
from polybit.kernels.reference.attention import QUERY_RUN
from polybit.kernels.reference.matrices import MAX_WORK_WEIGHTS
from polybit.model.source import ModelSource, head_is_tied, vector_shapes

CHUNK_TOKENS = 2048  # of a prompt in one forward pass: enough to keep a device busy, few enough to bound its scratch
SAMPLED_ROWS = 16  # sequences whose logits exist at once
LOGITS_COPIES = 4  # fp32: as the head gives them, sorted, filtered, as probabilities
GRAPH_LOGITS_COPIES = 3  # fp32: of all sizes of batch, which add up to twice the largest, and as the head computes them
SPARE_TOKENS = 256  # of the cache, for sequences that fill a batch up
WORK_BYTES = 7  # for each weight of a packed matrix while it is dequantized
GPTQ_GROUP_BYTES = 4  # for each input feature of a GPTQ matrix: its group, in the layout of kernels

QUANTIZED: frozenset[str] = frozenset({"exl2", "gptq"})

HeldBytes = Callable[[spec.Linear], int]


@dataclass(frozen=True)
class BlockBytes:
    matrices: int  # as they are held, biases included
    vectors: int  # norms, routers
    cache: int  # keys and values of one token

    @property
    def weights(self) -> int:
        return self.matrices + self.vectors


@dataclass(frozen=True)
class Footprint:
    """Everything that a plan has to place."""

    table: int  # token embedding as stored
    positions: int  # learned positions
    blocks: tuple[BlockBytes, ...]
    norm: int  # before the head
    head: int  # output matrix
    head_is_table: bool  # the output matrix is the embedding's own memory where both lie on one device
    activations: int  # of one token of a prompt, at their peak
    scores: int  # of one query over one key, where attention holds them; 0: it does not
    workspace: int  # to dequantize in
    logits: int
    max_seq_len: int
    kept: int = 0  # what kernels keep for themselves on each GPU
    graphs: int = 0  # what decode steps that are captured hold on a GPU
    unpacked: bool = False  # quantized matrices count dequantized

    @property
    def weights(self) -> int:
        """All of them, on one device."""
        ends = self.table + self.positions + self.norm + (0 if self.head_is_table else self.head)
        return ends + sum(block.weights for block in self.blocks)

    def scratch(self, cache_tokens: int) -> int:
        """The most that a forward pass holds beside weights and cache."""
        chunk = min(CHUNK_TOKENS, self.max_seq_len)
        scores = self.scores * min(QUERY_RUN, chunk) * max(chunk, min(cache_tokens, self.max_seq_len))
        return chunk * self.activations + scores + self.workspace + self.logits


def footprint(
    model: spec.Model,
    held: HeldBytes,
    dtype: torch.dtype,
    table_itemsize: int,
    head_is_table: bool,
    holds_scores: bool,
    kept: int = 0,
    cache: KVBits = FULL,
    unpacked: bool = False,
    graphs: bool = True,
) -> Footprint:
    """`held`: bytes of a matrix in memory. `kept`: by kernels, on each GPU.

    `graphs`: a GPU is to capture decode steps.
    """
    tables = (model.embedding, *([] if model.positions is None else [model.positions]))
    numbers = {name: prod(shapes[0]) for name, shapes in vector_shapes(model).items()}
    norm = sum(size for name, size in numbers.items() if name.startswith(f"{model.norm.key}."))
    sizes = [table_itemsize * table.num_rows * table.width for table in tables]
    row = 4 * model.head.linear.padded_out_features  # of logits
    activations = max(_activations(model, block, dtype) for block in model.blocks)
    blocks = tuple(_block_bytes(block, held, numbers, dtype, cache) for block in model.blocks)
    spare = SPARE_TOKENS * sum(block.cache for block in blocks)
    return Footprint(
        table=sizes[0],
        positions=sum(sizes[1:]),
        blocks=blocks,
        norm=norm * dtype.itemsize,
        head=held(model.head.linear),
        head_is_table=head_is_table,
        activations=activations,
        scores=2 * 4 * max(block.attn.num_heads for block in model.blocks) if holds_scores else 0,
        workspace=WORK_BYTES * min(MAX_WORK_WEIGHTS, max(_num_weights(linear) for linear in model.linears)),
        logits=SAMPLED_ROWS * LOGITS_COPIES * row,
        max_seq_len=model.max_seq_len,
        kept=kept,
        graphs=spare + SAMPLED_ROWS * (activations + GRAPH_LOGITS_COPIES * row) if graphs else 0,
        unpacked=unpacked,
    )


def footprint_of(source: ModelSource, dtype: torch.dtype, unpacked: bool, backend: Backend) -> Footprint:
    """Of an opened folder. `unpacked`: quantized matrices are held dequantized to `dtype`."""
    model, checkpoint = source.spec, source.checkpoint
    table_dtype = checkpoint.dtype(f"{model.embedding.key}.weight")
    head = model.head
    shared = head.linear.prescale == 1.0 and not head.normalise_rows and table_dtype == dtype
    return footprint(
        model,
        held=lambda linear: held_bytes(source, linear, dtype, unpacked, backend),
        dtype=dtype,
        table_itemsize=table_dtype.itemsize,
        head_is_table=head_is_tied(model, checkpoint) and shared,
        holds_scores=backend.HOLDS_SCORES,
        kept=backend.KEPT_BYTES,
        unpacked=unpacked and is_quantized(source),
        cache=read_bits(source.options.cache),
        graphs=source.options.graphs,
    )


def is_quantized(source: ModelSource) -> bool:
    return bool(quantized_kinds(source))


def quantized_kinds(source: ModelSource) -> frozenset[str]:
    """Which of exl2 and gptq there is in it."""
    return QUANTIZED & {source.checkpoint.kind(linear.key) for linear in source.spec.linears}


def held_bytes(source: ModelSource, linear: spec.Linear, dtype: torch.dtype, unpacked: bool, backend: Backend) -> int:
    """A matrix and its bias in memory."""
    checkpoint, kind = source.checkpoint, source.checkpoint.kind(linear.key)
    width = checkpoint.shape(f"{linear.key}.q_weight")[1] if kind == "exl2" else linear.out_features
    bias = linear.bias * width * dtype.itemsize
    if kind == "exl2" and not unpacked:
        return bias + backend.exl2_bytes(exl2.read_layout(checkpoint, linear.key), width, dtype)
    if kind == "gptq" and not unpacked:
        stored = sum(map(checkpoint.num_bytes, checkpoint.names_of(linear.key)))
        return stored + GPTQ_GROUP_BYTES * linear.in_features
    return bias + linear.in_features * width * dtype.itemsize


def _block_bytes(
    block: spec.Block, held: HeldBytes, numbers: dict[str, int], dtype: torch.dtype, cache: KVBits
) -> BlockBytes:
    keys = [norm.key for norm in spec.block_norms(block)]
    if isinstance(block.mlp, spec.SparseMoe):
        keys.append(block.mlp.router_key)
    return BlockBytes(
        matrices=sum(held(linear) for linear in linears_of(block)),
        vectors=dtype.itemsize * sum(numbers.get(f"{key}.{part}", 0) for key in keys for part in ("weight", "bias")),
        cache=token_bytes(block.attn, cache, dtype),
    )


def token_bytes(attn: spec.Attention, cache: KVBits, dtype: torch.dtype) -> int:
    """Keys and values of one token in one layer. Raises ConfigError where its heads cannot be quantized."""
    return attn.num_kv_heads * sum(row_bytes(attn.head_dim, bits, dtype) for bits in (cache.k, cache.v))


def linears_of(block: spec.Block) -> tuple[spec.Linear, ...]:
    return (*block.attn.linears, *block.mlp.linears)


def _activations(model: spec.Model, block: spec.Block, dtype: torch.dtype) -> int:
    """Of one token: the residual stream, its norm in fp32 and in `dtype`, and the wider of attention and MLP."""
    attn = block.attn
    heads = 2 * attn.num_heads * attn.head_dim + 2 * attn.num_kv_heads * attn.head_dim  # q, rotated or mixed; k; v
    mlp = 4 * max(_widths(block.mlp.linears))  # gate, up, their product, and that as the next matrix orders it
    return model.hidden_size * (3 * 4 + 2 * dtype.itemsize) + max(heads, mlp) * dtype.itemsize


def _widths(linears: Iterable[spec.Linear]) -> list[int]:
    return [linear.out_features for linear in linears]


def _num_weights(linear: spec.Linear) -> int:
    return linear.in_features * linear.padded_out_features
