"""Where the parts of a model go, decided before anything is loaded: sizes and free memory in, a plan out.

Blocks go onto the devices in order, the head onto the last one in use. What no GPU holds may live in RAM, packed, and
is then copied to the last GPU each time it is used. Nothing here asks a device anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from polybit.amounts import gibibytes
from polybit.errors import OutOfMemory
from polybit.model.footprint import Footprint

GIB = 1 << 30
GPU_SLACK = GIB // 4  # of a GPU: what cuBLAS, kernels and an allocator's rounding take beside what is counted
READ_AHEAD = 2  # parts in a GPU's memory while loading, beside the one that is being prepared
OFFLOAD_SLOTS = 2  # places on the GPU that blocks living in RAM take in turn
SMALL_TABLE = GIB // 4  # a token embedding that takes no more leaves RAM where a GPU has room for it
CONTEXT_STEP = 256  # tokens


@dataclass(frozen=True)
class Budget:
    """A device and how much of its memory a plan may use."""

    device: torch.device
    free: int

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"


@dataclass(frozen=True)
class Machine:
    budgets: tuple[Budget, ...]  # in the order in which blocks fill them
    ram: int  # free


@dataclass(frozen=True)
class Share:
    """What one device gets; sizes in bytes."""

    device: torch.device
    free: int
    blocks: range  # that compute here
    weights: int  # here, slots for blocks that live in RAM included
    cache: int
    scratch: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.scratch

    @property
    def spare(self) -> int:
        return self.free - self.total


@dataclass(frozen=True)
class Plan:
    shares: tuple[Share, ...]
    table: torch.device  # where the token embedding lies
    offloaded: range  # blocks whose matrices live in RAM; they compute on the last device
    ram: int  # bytes in RAM that belong to GPUs: those blocks, and the embedding where it stays there
    cache_tokens: int
    longest: int  # the most cache_tokens that this way of placing leaves room for, up to what the model reaches

    @property
    def device(self) -> torch.device:
        """Where a forward pass starts."""
        return self.shares[0].device

    @property
    def table_stays(self) -> bool:
        """Whether the token embedding stays in RAM while a GPU computes."""
        return self.device.type == "cuda" and self.table.type == "cpu"

    @property
    def block_devices(self) -> tuple[torch.device, ...]:
        return tuple(share.device for share in self.shares for _ in share.blocks)


def plan_memory(
    sizes: Footprint,
    machine: Machine,
    cache_tokens: int,
    offload: bool,
    fewest: int | None = None,
    what: str = "the model",
) -> Plan:
    """One device that holds everything, else several in order, else RAM too where `offload` allows it.

    `fewest`: a shorter cache will do where memory is short, down to so many tokens. OutOfMemory says what was needed,
    what was free, and which option helps.
    """
    longest = longest_context(sizes, machine, offload)
    placed = _place(sizes, machine, cache_tokens, offload)
    if placed is None and fewest is not None and longest >= fewest:
        placed = _place(sizes, machine, longest, offload)
    if placed is None:
        raise OutOfMemory(f"{what} {_shortage(sizes, machine, cache_tokens)}; {_advice(sizes, machine, offload)}")
    return replace(placed, longest=longest)


def longest_context(sizes: Footprint, machine: Machine, offload: bool) -> int:
    """The most tokens of cache for which there is a plan, a multiple of CONTEXT_STEP; 0: there is none."""
    low, high = 0, -(-sizes.max_seq_len // CONTEXT_STEP)
    while low < high:
        middle = (low + high + 1) // 2
        if _place(sizes, machine, middle * CONTEXT_STEP, offload) is None:
            high = middle - 1
        else:
            low = middle
    return low * CONTEXT_STEP


def _place(sizes: Footprint, machine: Machine, cache_tokens: int, offload: bool) -> Plan | None:
    """None: it does not fit."""
    need = _Need(sizes, cache_tokens)
    for budget in machine.budgets:
        whole = need.share(budget, range(need.num_blocks))
        if whole.spare >= 0:
            return _with_table(need, (whole,), range(0), machine)
    filled = _fill(need, machine.budgets)
    if filled and filled[-1].blocks.stop == need.num_blocks:
        return _with_table(need, filled, range(0), machine)
    return _with_ram(need, filled, machine) if offload and machine.budgets[-1].is_gpu else None


@dataclass(frozen=True)
class _Need:
    """What a run of blocks takes on a device, for one length of cache."""

    sizes: Footprint
    cache_tokens: int

    @property
    def num_blocks(self) -> int:
        return len(self.sizes.blocks)

    def share(self, budget: Budget, blocks: range, resident: int | None = None) -> Share:
        """`resident`: how many of the blocks keep their matrices here; None: all. The last block brings the head."""
        held = [self.sizes.blocks[i] for i in blocks]
        at_home, away = (held, []) if resident is None else (held[:resident], held[resident:])
        weights = sum(block.weights for block in at_home) + sum(block.vectors for block in away)
        weights += OFFLOAD_SLOTS * max((block.matrices for block in away), default=0)
        if blocks.start == 0:
            weights += self.sizes.positions
        parts = [block.matrices for block in held]
        if blocks.stop == self.num_blocks:
            weights += self.sizes.norm + self._head(budget, alone=blocks.start == 0)
            parts.append(self.sizes.head)
        cache = self.cache_tokens * sum(block.cache for block in held)
        scratch = self.sizes.scratch(self.cache_tokens)
        if budget.is_gpu:  # which needs room for what is read ahead, but gives it back before the cache is made
            sizes = self.sizes
            scratch = GPU_SLACK + sizes.kept + max(scratch + sizes.graphs, READ_AHEAD * max(parts) - cache)
        return Share(budget.device, budget.free, blocks, weights, cache, scratch)

    def _head(self, budget: Budget, alone: bool) -> int:
        shared = self.sizes.head_is_table and alone
        if budget.is_gpu:
            return self.sizes.head  # which a GPU's table shares its memory with, or has in RAM
        return self.sizes.table + (0 if shared else self.sizes.head)

    def fitting(self, budget: Budget, start: int) -> range:
        """As many blocks from `start` on as fit, but never the last, which needs the head beside it."""
        stop = start
        while stop < self.num_blocks - 1 and self.share(budget, range(start, stop + 1)).spare >= 0:
            stop += 1
        return range(start, stop)


def _fill(need: _Need, budgets: Sequence[Budget]) -> tuple[Share, ...]:
    """Blocks in order onto devices in order, as many as each holds; the last blocks may remain."""
    shares: list[Share] = []
    start = 0
    for budget in budgets:
        rest = need.share(budget, range(start, need.num_blocks))
        if rest.spare >= 0:
            return (*shares, rest)
        blocks = need.fitting(budget, start)
        if len(blocks):
            shares.append(need.share(budget, blocks))
            start = blocks.stop
    return tuple(shares)


def _with_ram(need: _Need, filled: Sequence[Share], machine: Machine) -> Plan | None:
    """The last GPU computes the blocks that remain as well, and keeps as many of them as it can."""
    last = machine.budgets[-1]
    others = tuple(share for share in filled if share.device != last.device)
    blocks = range(others[-1].blocks.stop if others else 0, need.num_blocks)
    for resident in range(len(blocks) - 1, -1, -1):
        share = need.share(last, blocks, resident)
        if share.spare >= 0:
            return _with_table(need, (*others, share), blocks[resident:], machine)
    return None


def _with_table(need: _Need, shares: tuple[Share, ...], offloaded: range, machine: Machine) -> Plan | None:
    """Also place the token embedding: on a GPU where it is the head's own memory, or small, or RAM lacks room for it.

    In RAM it costs next to nothing: a GPU reads from there the rows of its tokens, and no others.
    """
    first, sizes = shares[0], need.sizes
    ram = sum(sizes.blocks[i].matrices for i in offloaded)
    on_device = first.device.type != "cuda" or (sizes.head_is_table and len(shares) == 1)
    if not on_device:
        best_there = sizes.table <= SMALL_TABLE or ram + sizes.table > machine.ram
        on_device = best_there and sizes.table <= first.spare
        if on_device:
            shares = (replace(first, weights=first.weights + sizes.table), *shares[1:])
        else:
            ram += sizes.table
    if ram > machine.ram:
        return None
    table = first.device if on_device else torch.device("cpu")
    return Plan(shares, table, offloaded, ram, need.cache_tokens, longest=0)


# ---- what to say where nothing fits


def _shortage(sizes: Footprint, machine: Machine, cache_tokens: int) -> str:
    need = _Need(sizes, cache_tokens)
    whole = need.share(machine.budgets[0], range(need.num_blocks))
    free = " and ".join(f"{gibibytes(budget.free)} of {budget.device}" for budget in machine.budgets)
    return (
        f"needs {gibibytes(whole.total)} (weights {gibibytes(whole.weights)}, "
        f"cache of {cache_tokens:,} tokens {gibibytes(whole.cache)}, "
        f"work space {gibibytes(whole.scratch)} on each device), but {free} can be used"
    )


def _advice(sizes: Footprint, machine: Machine, offload: bool) -> str:
    choices = []
    longest = longest_context(sizes, machine, offload)
    if longest:
        choices.append(f"--cache-tokens {longest} (cache_tokens={longest}) would fit")
    if not offload and machine.budgets[-1].is_gpu and longest_context(sizes, machine, offload=True):
        choices.append("--offload (offload=True) keeps the layers that do not fit in RAM, slower")
    if sizes.unpacked:
        choices.append("--no-unpacked (unpacked=False)")
    choices.append(
        "more memory (close other programs" + (", raise --gpu-split)" if machine.budgets[-1].is_gpu else ")")
    )
    return f"what helps: {', or '.join(choices)}, or a model of fewer bits per weight"
