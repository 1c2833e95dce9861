"""The passes of a conversion over the layers: measure every option, quantize with the chosen ones, and the head."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polybit.kernels.protocol import Backend
from polybit.kernels.rounding import Rounding
from polybit.model.source import ModelSource
from polybit.modules.norm import build_norm
from polybit.modules.rope import RopeTables
from polybit.quantizer.candidates import HEAD_SETS, Option
from polybit.quantizer.gptq import Quantized, check_packing, quantize, round_to_nearest
from polybit.quantizer.hessian import Hessian, factorize, shrink
from polybit.quantizer.job import Job
from polybit.quantizer.measure import MeasuredOption, measure_part
from polybit.quantizer.output import keep_quantized
from polybit.quantizer.part import OpenBlock, Part, open_block, relative_error
from polybit.quantizer.probe import Probe, ProbeWeights, in_half
from polybit.quantizer.stored import head_weight

MAX_FED_BACK_HEAD = 10**9  # elements; larger heads are rounded without feedback (format 9.4)


@dataclass(frozen=True)
class Workbench:
    """What every pass needs."""

    source: ModelSource
    ropes: RopeTables
    backend: Backend
    rounding: Rounding
    device: torch.device
    shrinkage: float  # of Hessians

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
        return open_block(self.source, layer, self.ropes, self.backend, self.device, self.shrinkage)


def measure_layer(bench: Workbench, layer: int, x: Tensor) -> tuple[Tensor, list[list[MeasuredOption]]]:
    """x [R, L, E] -> the unquantized layer's output, and the options of its attention and of its MLP."""
    measured = list[list[MeasuredOption]]()

    def visit(part: Part, part_input: Tensor) -> Tensor:
        output, options = measure_part(part, part_input, bench.rounding)
        measured.append(options)
        return output

    return bench.open(layer).advance(x, visit), measured


def quantize_layer(
    bench: Workbench, job: Job, layer: int, x: Tensor, chosen: Sequence[Option]
) -> tuple[Tensor, dict[str, float]]:
    """Quantize a layer on the outputs x [R, L, E] of the quantized layers before it, with one option for each part.

    Keeps the matrices in the job. Returns the quantized layer's output, and the relative error of each part by name.
    """
    options, errors = iter(chosen), dict[str, float]()

    def visit(part: Part, part_input: Tensor) -> Tensor:
        wanted, factors = part.run_and_factorize(part_input)
        option = next(options)
        for role, linear in part.slot.linears:
            probe = part.probes[linear.key]
            layout = option[role].layout(linear.in_features)
            quantized = quantize(probe.original, factors[linear.key], layout, bench.rounding)
            keep(job, probe, quantized)
            probe.weight = quantized.dense
        output = part(part_input)
        errors[part.slot.name] = relative_error(output, wanted)
        return output

    return bench.open(layer).advance(x, visit), errors


def quantize_head(bench: Workbench, job: Job, x: Tensor, head_bits: int) -> None:
    """x [R, L, E], the last layer's quantized outputs."""
    model, node = bench.source.spec, bench.source.spec.head.linear
    norm = build_norm(model.norm, ProbeWeights(bench.source.checkpoint, bench.device, bench.backend), bench.backend)
    hessian = Hessian(node.in_features, bench.device)
    for row in x:
        hessian.add(norm(row.to(bench.device)))
    weight, bias = head_weight(bench.source)
    original = weight.to(bench.device).float().T.contiguous()
    h, layout = shrink(hessian.mean(len(x)), bench.shrinkage), HEAD_SETS[head_bits].layout(node.in_features)
    if original.numel() > MAX_FED_BACK_HEAD:
        perm = h.diagonal().argsort(descending=True, stable=True)
        quantized = round_to_nearest(original, perm, layout, bench.rounding)
    else:
        quantized = quantize(original, factorize(h, node.key), layout, bench.rounding)
    keep(job, Probe(node, original, bias), quantized)


def keep(job: Job, probe: Probe, quantized: Quantized) -> None:
    """Pack, check what a reader will make of it, and write it into the job's folder."""
    packed = quantized.encode(probe.bias)
    check_packing(packed, quantized.dense, probe.node.key)
    keep_quantized(job, probe.node.key, packed)
