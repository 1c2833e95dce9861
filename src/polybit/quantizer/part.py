"""A slot's module of one block, ready to run over calibration rows with its own or with quantized weights."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from polybit import spec
from polybit.errors import CalibrationError
from polybit.kernels.protocol import Backend
from polybit.model.source import ModelSource
from polybit.modules.block import Layer, ParallelLayer, SequentialLayer, build_block
from polybit.modules.rope import RopeTables
from polybit.modules.step import KVStore, Step, whole_rows
from polybit.quantizer.hessian import Factor, Hessian, factorize
from polybit.quantizer.method import ORIGINAL
from polybit.quantizer.probe import Probe, ProbeWeights
from polybit.quantizer.slots import Input, Slot, slots_of

log = logging.getLogger(__name__)

TOKENS_AT_ONCE = 2048
RESIDENT_BYTES = 1 << 29  # states up to so large stay on the device: they are little beside a layer

Forward = Callable[[Tensor, Step, KVStore], Tensor]  # [T, E] -> [T, E]
Visit = Callable[["Part", Tensor], Tensor]


@dataclass(frozen=True)
class Part:
    slot: Slot
    probes: Mapping[str, Probe]  # by key
    forward: Forward
    device: torch.device

    def __call__(self, x: Tensor) -> Tensor:
        """x [R, L, E] -> [R, L, E], which lies where x does. CalibrationError where a result is not finite."""
        out = torch.empty_like(x)
        for rows, result in zip(chunks(x), chunks(out), strict=True):
            step, store = whole_rows(rows.shape[0], rows.shape[1], self.device)
            result.copy_(self.forward(rows.flatten(0, 1).to(self.device), step, store).view_as(rows))
        if not out.isfinite().all():
            raise CalibrationError(f"{self.slot.name} computes NaN or infinity; the model is damaged, fetch it again")
        return out

    def run_and_factorize(self, x: Tensor) -> tuple[Tensor, dict[str, Factor]]:
        """The output for x [R, L, E], and the factor of each matrix's inputs by its key, all inputs unquantized."""
        with self._listening() as hessians:
            out = self(x)
        factors: dict[str, Factor] = {}
        for heard, hessian in zip(self.slot.inputs, hessians, strict=True):
            first = heard.linears[0].key
            if hessian.num_tokens == 0:
                log.warning("%s: no calibration token reached it, its weights are rounded without feedback", first)
            factor = factorize(hessian.mean(len(x) * heard.num_passes), ORIGINAL.damping, first)
            factors |= {linear.key: factor for linear in heard.linears}
        return out, factors

    def hear_routed(self, x: Tensor, heard: Input) -> dict[str, Tensor]:
        """The Hessian of matrices whose inputs a router chooses, for x [R, L, E] and the weights as they are now.

        By key, and one for all of them: every token counts as one.
        """
        hessian = Hessian(heard.linears[0].in_features, self.device)
        for rows in chunks(x):
            for inputs in self._inputs(rows, heard):
                hessian.add(inputs)
        if hessian.num_tokens == 0:
            log.warning(
                "%s: no calibration token reached it, its weights are rounded without feedback", heard.linears[0].key
            )
        mean = hessian.mean(len(x) * heard.num_passes)
        return {linear.key: mean for linear in heard.linears}

    def hear(
        self, x: Tensor, true: Tensor, heard: Input, token_weights: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The Hessian of each matrix by its key, and its inputs' drift: the means of w i^T i and of w i^T (t - i).

        i are the inputs for x [R, L, E] and the weights as they are now, t those for `true` [R, L, E] and the
        unquantized weights, w the token_weights [T], by key. Not for inputs that a router chooses.
        """
        sums = {
            linear.key: [Hessian(linear.in_features, self.device, token_weights[linear.key]) for _ in range(2)]
            for linear in heard.linears
        }
        for rows, true_rows in zip(chunks(x), chunks(true), strict=True):
            (inputs,) = self._inputs(rows, heard)
            with self._unquantized():
                (wanted,) = self._inputs(true_rows, heard)
            wanted -= inputs
            for hessian, drift in sums.values():
                hessian.add(inputs)
                drift.add(inputs, wanted)
        hessians, drifts = ({key: pair[i].mean(len(x)) for key, pair in sums.items()} for i in range(2))
        return hessians, drifts

    def _inputs(self, rows: Tensor, heard: Input) -> list[Tensor]:
        """What reaches the matrices `heard.heard`, [T, K] each, for rows [R, L, E]."""
        found = list[Tensor]()

        def listener(inputs: Tensor) -> None:
            found.append(inputs.clone())
            if len(heard.heard) == 1:
                raise _HeardEnough

        for linear in heard.heard:
            self.probes[linear.key].listener = listener
        with suppress(_HeardEnough):
            self.forward(rows.flatten(0, 1).to(self.device), *whole_rows(rows.shape[0], rows.shape[1], self.device))
        for linear in heard.heard:
            self.probes[linear.key].listener = None
        return found

    @contextmanager
    def _unquantized(self) -> Iterator[None]:
        """For as long, every matrix as it was."""
        now = {key: probe.weight for key, probe in self.probes.items()}
        for probe in self.probes.values():
            probe.weight = probe.original
        try:
            yield
        finally:
            for key, probe in self.probes.items():
                probe.weight = now[key]

    @contextmanager
    def _listening(self) -> Iterator[list[Hessian]]:
        hessians = [Hessian(heard.linears[0].in_features, self.device) for heard in self.slot.inputs]
        listened = [
            (self.probes[linear.key], hessian)
            for heard, hessian in zip(self.slot.inputs, hessians, strict=True)
            for linear in heard.heard
        ]
        for probe, hessian in listened:
            probe.listener = hessian.add
        yield hessians
        for probe, _ in listened:
            probe.listener = None


class _HeardEnough(Exception):
    """Ends a forward pass of which only one matrix's input was wanted."""


@dataclass(frozen=True)
class OpenBlock:
    """Both parts of one block."""

    attention: Part
    mlp: Part
    is_parallel: bool
    layer: Layer

    @property
    def parts(self) -> tuple[Part, Part]:
        return self.attention, self.mlp

    @property
    def probes(self) -> Mapping[str, Probe]:
        """Of both parts, by key."""
        return self.attention.probes

    @property
    def device(self) -> torch.device:
        return self.attention.device

    def advance(self, x: Tensor, visit: Visit) -> Tensor:
        """The block's output for x [R, L, E], where `visit` says what each part makes of its input."""
        x = resident(x, self.device)
        if self.is_parallel:
            return x + visit(self.attention, x) + visit(self.mlp, x)
        return visit(self.mlp, visit(self.attention, x))


def open_block(source: ModelSource, index: int, ropes: RopeTables, backend: Backend, device: torch.device) -> OpenBlock:
    """Read block `index` into memory."""
    node = source.spec.blocks[index]
    weights = ProbeWeights(source.checkpoint, device, backend)
    layer = build_block(node, 0, weights, backend, ropes)
    attend, feed = _forwards(layer)
    attention, mlp = slots_of(node)
    return OpenBlock(
        Part(attention, weights.probes, attend, device),
        Part(mlp, weights.probes, feed, device),
        is_parallel=isinstance(node, spec.ParallelBlock),
        layer=layer,
    )


def _forwards(layer: Layer) -> tuple[Forward, Forward]:
    """Attention and MLP as functions of their input; with the residual, except in parallel blocks."""
    match layer:
        case SequentialLayer(attn=attn, mlp=mlp):
            return attn, lambda x, step, store: mlp(x)
        case ParallelLayer(attn=parallel_attn, mlp=parallel_mlp):
            return parallel_attn, lambda x, step, store: parallel_mlp(x)


def resident(x: Tensor, device: torch.device) -> Tensor:
    """States x [R, L, E] on the device, if it should hold as much for the length of a layer; else as they are."""
    return x.to(device) if x.numel() * x.element_size() <= RESIDENT_BYTES else x


def chunks(x: Tensor) -> tuple[Tensor, ...]:
    """Rows in portions of some thousand tokens: enough for the cores, little beside the weights."""
    return torch.split(x, max(1, TOKENS_AT_ONCE // x.shape[1]))


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Mean over tokens of ||found - wanted|| / ||wanted||; both [R, L, E].

    Token by token, because many models give a row's first token a state hundreds of times larger than the others': in
    one norm over the row it hides all errors but its own, and the layers where that happens would be starved of bits.
    """
    return float(((found - wanted).norm(dim=-1) / wanted.norm(dim=-1).clamp_min(1e-12)).mean())
