"""What a model would take where it runs once it is converted, for a choice of bits: from its description alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from polybit import spec
from polybit.errors import ConfigError
from polybit.kernels.pages import KVBits
from polybit.model.footprint import Footprint, footprint
from polybit.model.plan import CONTEXT_STEP, Machine, longest_context, plan_memory
from polybit.quantizer.candidates import HEAD_SETS
from polybit.quantizer.needs import head_bytes
from polybit.quantizer.pricing import extremes
from polybit.quantizer.slots import all_slots

PACKED_OVERHEAD = 0.003  # what kernels' own layouts add to packed matrices of few bits
GPU_KEPT_BYTES = 49 << 20  # by the CUDA kernels, which need not be installed here
STEP = 0.01  # bits per weight


@dataclass(frozen=True)
class Prospect:
    """A model that stays packed, and where it is to run."""

    model: spec.Model
    machine: Machine
    cache: KVBits
    head_bits: int

    def __post_init__(self) -> None:
        if self.head_bits not in HEAD_SETS:
            raise ConfigError(f"head_bits is {self.head_bits}, expected one of {', '.join(map(str, HEAD_SETS))}")

    def sizes(self, bits: float) -> Footprint:
        """With all matrices of the layers alike."""
        on_gpu = self.machine.budgets[0].is_gpu

        def held(linear: spec.Linear) -> int:
            weights = linear.in_features * linear.padded_out_features
            stored = head_bytes(self.model, self.head_bits) if linear is self.model.head.linear else weights * bits / 8
            return int(stored * (1 + PACKED_OVERHEAD))

        return footprint(
            self.model,
            held,
            torch.float16 if on_gpu else torch.float32,
            table_itemsize=torch.float16.itemsize,
            head_is_table=False,
            holds_scores=not on_gpu,
            kept=on_gpu * GPU_KEPT_BYTES,
            cache=self.cache,
        )

    def longest(self, bits: float) -> int:
        """The most tokens of context that fit, up to what the model reaches; 0: not even the weights do."""
        return min(longest_context(self.sizes(bits), self.machine, offload=False), self.model.max_seq_len)

    def fits(self, bits: float, context: int) -> bool:
        return context <= self.longest(bits)

    def total(self, bits: float, context: int) -> int:
        """Bytes on all devices, for a context that fits."""
        plan = plan_memory(self.sizes(bits), self.machine, -(-context // CONTEXT_STEP) * CONTEXT_STEP, offload=False)
        return sum(share.total for share in plan.shares)

    def most_bits(self, context: int) -> float | None:
        """The most bits per weight with which the context fits, to two decimals; None: it does with none."""
        least, most = (round(end / STEP) for end in self.reach)
        if not self.fits(least * STEP, context):
            return None
        while least < most:
            middle = (least + most + 1) // 2
            if self.fits(middle * STEP, context):
                least = middle
            else:
                most = middle - 1
        return round(least * STEP, 2)

    @property
    def reach(self) -> tuple[float, float]:
        """The fewest and the most bits per weight that a conversion comes to, whole steps inside its reach."""
        slots = all_slots(self.model)
        ends = [sum(bits) for bits in zip(*map(extremes, slots), strict=True)]
        least, most = (end / sum(slot.num_weights for slot in slots) for end in ends)
        return -(-least // STEP) * STEP, most // STEP * STEP


def contexts_up_to(longest: int, shortest: int = 4096) -> Sequence[int]:
    """Powers of two, and `longest` itself."""
    powers = [shortest << i for i in range(max(0, (longest // shortest).bit_length()))]
    return sorted({*(power for power in powers if power < longest), longest})
