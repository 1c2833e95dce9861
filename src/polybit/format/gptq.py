"""GPTQ at 4 bits: one quantized linear as AutoGPTQ and GPTQModel store it, its validation and its arithmetic.

Rows are input features in their own order; input row k belongs to group `g_idx[k]`, or to `k // group_size` where there
is no usable g_idx. A weight is `(q - zero) * scale`, rounded once to binary16. Nothing here writes GPTQ.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polybit import spec
from polybit.errors import FormatError
from polybit.format.checkpoint import FLOATS, Checkpoint
from polybit.format.packing import CODES_PER_WORD, unpack_codes

BITS = 4
INTEGERS = (torch.int32, torch.int64)


@dataclass(frozen=True, eq=False)
class GptqTensor:
    """One quantized linear. K in_features, N out_features, G groups."""

    qweight: Tensor  # [K / 8, N] int32, the lowest row in the lowest four bits
    qzeros: Tensor  # [G, N / 8] int32, the lowest column in the lowest four bits
    scales: Tensor  # [G, N] float16
    g_idx: Tensor | None  # [K] int64: group of each row; None: groups of equal size, one after another
    bias: Tensor | None  # [N] float16
    zero_offset: int = 1  # what stored zeros lack: the first format stores one less than the zero, `gptq_v2` does not

    @property
    def in_features(self) -> int:
        return self.qweight.shape[0] * CODES_PER_WORD

    @property
    def out_features(self) -> int:
        return self.qweight.shape[1]

    @property
    def group_of_row(self) -> Tensor:
        """[K] int64"""
        if self.g_idx is not None:
            return self.g_idx
        size = group_size(self.in_features, self.scales.shape[0])
        return torch.arange(self.in_features, device=self.qweight.device) // size

    @property
    def num_bytes(self) -> int:
        parts = (self.qweight, self.qzeros, self.scales, self.g_idx, self.bias)
        return sum(part.nbytes for part in parts if part is not None)

    def to(self, device: torch.device) -> "GptqTensor":
        """The same matrix on another device."""
        return GptqTensor(
            qweight=self.qweight.to(device),
            qzeros=self.qzeros.to(device),
            scales=self.scales.to(device),
            g_idx=None if self.g_idx is None else self.g_idx.to(device),
            bias=None if self.bias is None else self.bias.to(device),
            zero_offset=self.zero_offset,
        )

    def columns(self, start: int, stop: int) -> "GptqTensor":
        """Output columns [start, stop), multiples of 8, as views; the bias stays behind."""
        codes = slice(start // CODES_PER_WORD, stop // CODES_PER_WORD)
        cut = (self.qweight[:, start:stop], self.qzeros[:, codes], self.scales[:, start:stop])
        return GptqTensor(*cut, self.g_idx, bias=None, zero_offset=self.zero_offset)


def group_size(in_features: int, num_groups: int) -> int:
    """Rows of a sequential group: the smallest power of two with which the groups reach over all rows."""
    size = 1
    while size * num_groups < in_features:
        size *= 2
    return size


def zero_offset(config: Mapping[str, Any]) -> int:
    """What the zeros of a checkpoint with this config.json lack (GptqTensor.zero_offset)."""
    quantization = config.get("quantization_config")
    v2 = isinstance(quantization, Mapping) and quantization.get("checkpoint_format") == "gptq_v2"
    return 0 if v2 else 1


def dequantize(tensor: GptqTensor, prescale: float = 1.0) -> Tensor:
    """[K, N] float16, rows in the order of input features."""
    groups = tensor.group_of_row
    scales = tensor.scales if prescale == 1.0 else (tensor.scales.float() * prescale).half()
    zeros = unpack_codes(tensor.qzeros).to(torch.int16) + tensor.zero_offset  # [G, N]
    q = unpack_codes(tensor.qweight.T).T.to(torch.int16)  # [K, N]
    return (q - zeros[groups]).half() * scales[groups]


def read(checkpoint: Checkpoint, key: str, expected: spec.Linear | None = None, zero_offset: int = 1) -> GptqTensor:
    """The linear `key`, every tensor of it checked. `expected` adds the model's own shape and whether there is a bias.

    FormatError: a tensor is missing, damaged, of another model, or not of 4 bits.
    """
    _check_shapes(checkpoint, key, expected)
    tensor = GptqTensor(
        qweight=checkpoint.tensor(f"{key}.qweight"),
        qzeros=checkpoint.tensor(f"{key}.qzeros"),
        scales=checkpoint.tensor(f"{key}.scales").half(),
        g_idx=_read_g_idx(checkpoint, key),
        bias=_read_bias(checkpoint, key, expected),
        zero_offset=zero_offset,
    )
    if not tensor.scales.isfinite().all():
        raise checkpoint.damaged(f"{key}.scales", "holds a value that is not finite in float16")
    return tensor


def _check_shapes(checkpoint: Checkpoint, key: str, expected: spec.Linear | None) -> None:
    """The tensors agree with each other, and with the model, in type and shape."""
    for part in ("qweight", "qzeros"):
        checkpoint.check(f"{key}.{part}", (torch.int32,), (None, None))
    checkpoint.check(f"{key}.scales", FLOATS, (None, None))
    _check_width(checkpoint, key)
    packed_rows, columns = checkpoint.shape(f"{key}.qweight")
    num_groups = checkpoint.shape(f"{key}.scales")[0]
    if packed_rows == 0 or num_groups == 0:
        raise checkpoint.damaged(f"{key}.qweight", "or its scales are empty")
    checkpoint.check(f"{key}.scales", FLOATS, (num_groups, columns))
    checkpoint.check(f"{key}.qzeros", (torch.int32,), (num_groups, columns // CODES_PER_WORD))
    if expected is not None:
        shape = (expected.in_features // CODES_PER_WORD, expected.out_features)
        checkpoint.check(f"{key}.qweight", (torch.int32,), shape)


def _check_width(checkpoint: Checkpoint, key: str) -> None:
    """The zeros' columns tell how many bits a weight has: N * bits / 32."""
    name = f"{key}.qzeros"
    words, columns = checkpoint.shape(name)[1], checkpoint.shape(f"{key}.scales")[1]
    if columns and words * CODES_PER_WORD == columns:
        if checkpoint.shape(f"{key}.qweight")[1] == words:
            raise FormatError(f"{key}.qweight is packed along its columns, as AWQ does, which is not supported")
        return
    bits = words * 32 / columns if columns else 0
    if bits in (2, 3, 8):
        raise FormatError(
            f"{name} is of {bits:.0f}-bit GPTQ ({checkpoint.file_of(name).name}); only 4 bits are supported"
        )
    raise checkpoint.damaged(name, f"has {words} columns, expected {columns // CODES_PER_WORD}")


def _read_g_idx(checkpoint: Checkpoint, key: str) -> Tensor | None:
    """Groups of rows, None where they only repeat that groups follow one another."""
    name = f"{key}.g_idx"
    if name not in checkpoint:
        return None
    in_features = checkpoint.shape(f"{key}.qweight")[0] * CODES_PER_WORD
    num_groups = checkpoint.shape(f"{key}.scales")[0]
    checkpoint.check(name, INTEGERS, (in_features,))
    g_idx = checkpoint.tensor(name).long()
    if g_idx.min() < 0 or g_idx.max() >= num_groups:
        found = f"{g_idx.min()}..{g_idx.max()}"
        raise checkpoint.damaged(name, f"holds group numbers {found}, expected 0..{num_groups - 1}")
    sequential = torch.arange(in_features) // group_size(in_features, num_groups)
    return None if not g_idx.any() or torch.equal(g_idx, sequential) else g_idx


def _read_bias(checkpoint: Checkpoint, key: str, expected: spec.Linear | None) -> Tensor | None:
    """The bias in float16; an all-zero one, which exporters add to every layer, counts as none."""
    name = f"{key}.bias"
    wanted = expected is not None and expected.bias
    if name not in checkpoint:
        if wanted:
            raise checkpoint.damaged(f"{key}.qweight", f"comes without {name}, but this layer has one")
        return None
    checkpoint.check(name, FLOATS, (checkpoint.shape(f"{key}.qweight")[1],))
    bias = checkpoint.tensor(name).half()
    if expected is not None and not wanted and bias.any():
        raise checkpoint.damaged(name, "is there and not zero, but this layer has no bias")
    return bias if wanted or bias.any() else None
