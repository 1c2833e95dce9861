"""What each matrix of an opened folder takes on disk: the figures behind "bits per weight"."""

from collections.abc import Iterable
from dataclasses import dataclass

from polybit import spec
from polybit.model.source import ModelSource, head_is_tied


@dataclass(frozen=True)
class MatrixSize:
    """One matrix. Stored bits count everything that belongs to it: packed words, scales, order, bias, padding."""

    key: str
    num_weights: int
    stored_bits: int

    @property
    def bpw(self) -> float:
        return self.stored_bits / self.num_weights


def bits_per_weight(sizes: Iterable[MatrixSize]) -> float:
    """The average over matrices, each counted by its weights."""
    listed = list(sizes)
    return sum(size.stored_bits for size in listed) / sum(size.num_weights for size in listed)


def layer_sizes(source: ModelSource) -> list[list[MatrixSize]]:
    """The matrices of each decoder block, in file order."""
    return [
        [matrix_size(source, linear) for linear in (*block.attn.linears, *block.mlp.linears)]
        for block in source.spec.blocks
    ]


def head_size(source: ModelSource) -> MatrixSize | None:
    """The output matrix; None where it is the embedding itself."""
    return None if head_is_tied(source.spec, source.checkpoint) else matrix_size(source, source.spec.head.linear)


def file_bytes(source: ModelSource) -> int:
    """All weight files of the folder together."""
    checkpoint = source.checkpoint
    return sum(path.stat().st_size for path in {checkpoint.file_of(name) for name in checkpoint.names()})


def matrix_size(source: ModelSource, linear: spec.Linear) -> MatrixSize:
    checkpoint, num_weights = source.checkpoint, linear.in_features * linear.out_features
    stored_bytes = sum(checkpoint.num_bytes(name) for name in checkpoint.names_of(linear.key))
    if stored_bytes == 0 and linear.source is not None:  # a part of a fused tensor
        stored_bytes = num_weights * checkpoint.dtype(f"{linear.source.key}.weight").itemsize
    return MatrixSize(linear.key, num_weights, 8 * stored_bytes)
