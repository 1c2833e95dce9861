"""The passes of a conversion over the layers: judge every option, quantize with the chosen ones, and the head.

A layer and its statistics lie on one device; its matrices are priced and rounded on all that there are.
"""

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from polybit.format.exl2 import Layout, storage_bits
from polybit.kernels.protocol import Backend
from polybit.kernels.rounding import Rounding
from polybit.model.source import ModelSource
from polybit.modules.norm import build_norm
from polybit.modules.rope import RopeTables
from polybit.modules.weights import NormFn
from polybit.quantizer.candidates import HEAD_SETS, Option
from polybit.quantizer.descent import descend
from polybit.quantizer.gptq import Quantized, check_packing, quantize, quantize_fitted, round_to_nearest
from polybit.quantizer.hessian import Factor, Hessian, factorize, shrink, weigh_rows
from polybit.quantizer.job import Job
from polybit.quantizer.measure import MeasuredOption, measure_part
from polybit.quantizer.method import Method
from polybit.quantizer.output import keep_quantized
from polybit.quantizer.part import OpenBlock, Part, open_block, relative_error
from polybit.quantizer.pricing import Table, block_costs, options_of, set_within
from polybit.quantizer.probe import Probe, ProbeWeights, in_half
from polybit.quantizer.progress import Advance
from polybit.quantizer.sensitivity import Echo, Sensitivity, backward, head_gradient
from polybit.quantizer.spread import Work, spread
from polybit.quantizer.stored import head_weight

JUDGED_ROWS = 4  # that a quantized part's error is reported of
PRICED_COLUMNS = 4096  # of a head: enough to choose a layout by
MAX_FED_BACK_HEAD = 10**9  # elements; larger heads are rounded without feedback (format 9.4)


@dataclass(frozen=True)
class Workbench:
    """What every pass needs."""

    source: ModelSource
    ropes: RopeTables
    backend: Backend
    rounding: Rounding
    device: torch.device
    method: Method
    helpers: tuple[torch.device, ...] = ()  # that take matrices off the device, and are of its kind

    @property
    def devices(self) -> tuple[torch.device, ...]:
        return self.device, *self.helpers

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens [R, L] -> the states before the first layer, [R, L, E] fp32."""
        model, checkpoint = self.source.spec, self.source.checkpoint
        name = f"{model.embedding.key}.weight"
        weight = in_half(checkpoint.tensor(name), name)
        x = self.backend.embedding(tokens.flatten(), weight.float(), model.embedding.scale).view(*tokens.shape, -1)
        if model.positions is not None:
            name = f"{model.positions.key}.weight"
            x = x + in_half(checkpoint.tensor(name), name)[: tokens.shape[1]].float()
        return x

    def open(self, layer: int) -> OpenBlock:
        return open_block(self.source, layer, self.ropes, self.backend, self.device)

    def open_head(self) -> tuple[NormFn, Probe]:
        """The final norm and the head."""
        model = self.source.spec
        norm = build_norm(model.norm, ProbeWeights(self.source.checkpoint, self.device, self.backend), self.backend)
        weight, bias = head_weight(self.source)
        return norm, Probe(model.head.linear, weight.to(self.device).float().T.contiguous(), bias)

    def trust(self, h: Tensor) -> Tensor:
        """h [K, K] as far as the method trusts it."""
        return shrink(h, self.method.shrinkage)

    def price(self, weight: Tensor, trusted: Tensor, columns: Tensor, where: str) -> Table:
        """weight [K, N], trusted [K, K], columns [N] -> what its blocks cost at every width."""
        return block_costs(weight, weigh_rows(trusted, self.method.damping, where), columns, self.rounding)

    def round(
        self,
        weight: Tensor,
        trusted: Tensor,
        layout: Layout,
        columns: Tensor,
        key: str,
        drifts: MutableMapping[str, Tensor] | None = None,
    ) -> Quantized:
        """A method by loss on one matrix [K, N], which makes up for a part of its inputs' drift [K, K].

        The drift is taken out of `drifts`, for matrices as large as these should not live longer than they are needed.
        """
        missing = drifts.pop(key).to(weight.device) @ weight if drifts and key in drifts else None
        factor = factorize(trusted, self.method.damping, key)
        if missing is not None:
            weight = weight + factor.solve(missing).mul_(self.method.correction)
        del missing
        fed_back = quantize_fitted(weight, factor, layout, columns, self.rounding)
        del factor  # as large as `trusted`
        return descend(fed_back, weight, trusted, self.method.sweeps, self.rounding)


def measure_layer(bench: Workbench, layer: int, x: Tensor) -> tuple[Tensor, list[list[MeasuredOption]]]:
    """x [R, L, E] -> the unquantized layer's output, and the options of its attention and of its MLP."""
    measured = list[list[MeasuredOption]]()

    def visit(part: Part, part_input: Tensor) -> Tensor:
        output, options = measure_part(part, part_input, bench.rounding, bench.devices)
        measured.append(options)
        return output

    return bench.open(layer).advance(x, visit), measured


def loss_gradient(bench: Workbench, x: Tensor, advance: Advance) -> Tensor:
    """x [R, L, E], the last layer's unquantized outputs -> the gradient there of the model's own loss."""
    return head_gradient(x, *bench.open_head(), bench.source.spec.head.softcap, advance)


def go_back(
    bench: Workbench, layer: int, x: Tensor, gradient: Tensor, priced: bool
) -> tuple[Tensor, dict[str, Sensitivity], list[list[MeasuredOption]]]:
    """x [R, L, E] the unquantized inputs of a layer, gradient [R, L, E] of the loss at its outputs.

    Returns the gradient at x, the sensitivity of each matrix, and where `priced` the options of attention and MLP.
    """
    block, num_tokens = bench.open(layer), x.shape[0] * x.shape[1]
    gradient, echoes = backward(block, x, gradient)
    found = {key: echo.sensitivity(num_tokens) for key, echo in echoes.items()}
    if not priced:
        return gradient, found, []
    works = {
        key: Work(block.probes[key].original.numel(), partial(_price, bench, block.probes[key], echoes, each.columns))
        for key, each in found.items()
    }
    tables = dict(spread(bench.devices, works))
    return gradient, found, [options_of(part.slot, tables) for part in block.parts]


def _price(
    bench: Workbench, probe: Probe, echoes: MutableMapping[str, Echo], columns: Tensor, device: torch.device
) -> Table:
    """Of one matrix, whose echo is used up."""
    key = probe.node.key
    trusted = bench.trust(echoes.pop(key).hessian().to(device))
    return bench.price(probe.original.to(device), trusted, columns.to(device), key)


def quantize_layer(
    bench: Workbench,
    job: Job,
    layer: int,
    states: Tensor,
    chosen: Sequence[Option],
    sensitivities: Mapping[str, Sensitivity],
) -> tuple[Tensor, dict[str, float]]:
    """Quantize a layer on the outputs of the quantized layers before it, with one option for each part.

    states [2, R, L, E]: these outputs, and beside them those of the unquantized layers.
    Keeps the matrices in the job. Returns the same of this layer, and the relative error of each part by name, on some
    of the rows.
    A method by loss wants the sensitivity of every matrix by its key.
    """
    options, errors = iter(chosen), dict[str, float]()

    def visit(part: Part, inputs: Tensor) -> Tensor:
        x, true = inputs
        option, judged = next(options), slice(None, None, -(-len(x) // JUDGED_ROWS))
        both = torch.empty_like(inputs)
        both[1] = part(true)
        if bench.method.by_loss:
            wanted = part(x[judged])
            found = _in_order(bench, job, part, inputs, option, sensitivities)
        else:
            outputs, factors = part.run_and_factorize(x)
            wanted, found = outputs[judged].clone(), _at_once(bench, job, part, option, factors)
            del outputs
        for key, dense in found:
            part.probes[key].weight = dense
        both[0] = part(x)
        errors[part.slot.name] = relative_error(both[0, judged], wanted)
        return both

    return bench.open(layer).advance(states, visit), errors


def _at_once(
    bench: Workbench, job: Job, part: Part, option: Option, factors: Mapping[str, Factor]
) -> Iterator[tuple[str, Tensor]]:
    """Each matrix as a reader will see it, [K, N]."""
    works = dict[str, Work[Tensor]]()
    for role, linear in part.slot.linears:
        probe, layout = part.probes[linear.key], option[role].layout(linear.in_features)
        works[linear.key] = Work(
            probe.original.numel(), partial(_round, bench, job, probe, factors[linear.key], layout)
        )
    return spread(bench.devices, works)


def _round(bench: Workbench, job: Job, probe: Probe, factor: Factor, layout: Layout, device: torch.device) -> Tensor:
    quantized = quantize(probe.original.to(device), factor.to(device), layout, bench.rounding)
    keep(job, probe, quantized)
    return quantized.dense.to(bench.device)


def _in_order(
    bench: Workbench, job: Job, part: Part, states: Tensor, option: Option, sensitivities: Mapping[str, Sensitivity]
) -> Iterator[tuple[str, Tensor]]:
    """The same by loss. Each input's statistics are taken when the matrices before it are quantized: the caller swaps
    them in."""
    (x, true), roles = states, {linear.key: role for role, linear in part.slot.linears}
    for heard in part.slot.inputs:
        drifts = dict[str, Tensor]()
        if heard.is_routed:  # to experts that get other tokens once what comes before them is quantized
            hessians = part.hear_routed(x, heard)
        else:
            weights = {linear.key: sensitivities[linear.key].tokens for linear in heard.linears}
            hessians, drifts = part.hear(x, true, heard, weights)
        works = dict[str, Work[Tensor]]()
        for linear in heard.linears:
            probe, columns = part.probes[linear.key], sensitivities[linear.key].columns
            layout = option[roles[linear.key]].layout(linear.in_features)
            run = partial(_round_by_loss, bench, job, probe, hessians, drifts, layout, columns)
            works[linear.key] = Work(probe.original.numel(), run)
        yield from spread(bench.devices, works)


def _round_by_loss(
    bench: Workbench,
    job: Job,
    probe: Probe,
    hessians: MutableMapping[str, Tensor],
    drifts: MutableMapping[str, Tensor],
    layout: Layout,
    columns: Tensor,
    device: torch.device,
) -> Tensor:
    """One matrix, whose Hessian and drift are used up."""
    key = probe.node.key
    trusted = bench.trust(hessians.pop(key).to(device))
    quantized = bench.round(probe.original.to(device), trusted, layout, columns.to(device), key, drifts)
    keep(job, probe, quantized)
    return quantized.dense.to(bench.device)


def quantize_head(bench: Workbench, job: Job, x: Tensor, head_bits: int) -> None:
    """x [R, L, E], the last layer's quantized outputs."""
    norm, probe = bench.open_head()
    node, hessian = probe.node, Hessian(probe.node.in_features, bench.device)
    for row in x:
        hessian.add(norm(row.to(bench.device)))
    h, layout = hessian.mean(len(x)), HEAD_SETS[head_bits].layout(node.in_features)
    if probe.original.numel() > MAX_FED_BACK_HEAD:
        perm = h.diagonal().argsort(descending=True, stable=True)
        quantized = round_to_nearest(probe.original, perm, layout, bench.rounding)
    elif bench.method.by_loss:
        quantized = _head_within(bench, probe, h, storage_bits(layout, node.padded_out_features, False))
    else:
        factor = factorize(h, bench.method.damping, node.key)
        quantized = quantize(probe.original, factor, layout, bench.rounding)
    keep(job, probe, quantized)


def _head_within(bench: Workbench, probe: Probe, h: Tensor, num_bits: int) -> Quantized:
    """A method by loss on the head, in a layout of its own of at most `num_bits`; its columns count alike."""
    trusted, columns = bench.trust(h), torch.ones(probe.original.shape[1], device=bench.device)
    stride = max(1, len(columns) // PRICED_COLUMNS)
    some, where = probe.original[:, ::stride].contiguous(), probe.node.key
    chosen = set_within(bench.price(some, trusted, columns[::stride], where), probe.node.padded_out_features, num_bits)
    return bench.round(probe.original, trusted, chosen.layout(probe.node.in_features), columns, where)


def keep(job: Job, probe: Probe, quantized: Quantized) -> None:
    """Pack, check what a reader will make of it, and write it into the job's folder."""
    packed = quantized.encode(None if probe.bias is None else probe.bias.to(quantized.q.device))
    check_packing(packed, quantized.dense, probe.node.key)
    keep_quantized(job, probe.node.key, packed)
