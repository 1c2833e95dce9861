"""What each option of a module would cost in accuracy: its matrices quantized, swapped in, and the module run again."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from polybit.errors import CalibrationError
from polybit.kernels.rounding import Rounding
from polybit.quantizer.candidates import Option, ParameterSet
from polybit.quantizer.gptq import quantize
from polybit.quantizer.hessian import Factor
from polybit.quantizer.part import Part, relative_error
from polybit.quantizer.probe import Probe
from polybit.quantizer.spread import Work, spread

MIN_ACCURACY = 1e-6
MIN_BEST_ACCURACY = 0.1


@dataclass(frozen=True)
class MeasuredOption:
    accuracy: float  # 1 - the module's relative output error, residual included
    num_bits: int
    sets: Option

    @property
    def loss(self) -> float:
        """What allocation adds up: nats, of an option that was priced in nats."""
        return (1 - self.accuracy) ** 2


def measure_part(
    part: Part, x: Tensor, rounding: Rounding, devices: Sequence[torch.device]
) -> tuple[Tensor, list[MeasuredOption]]:
    """x [R, L, E] -> the unquantized output, and every option of the part's slot in table order.

    An option's matrices are quantized on all of `devices`, the first of which is the part's own.
    CalibrationError where even the best option is useless.
    """
    wanted, factors = part.run_and_factorize(x)
    judged, judged_wanted = _judged(x), _judged(wanted)
    slot, measured = part.slot, list[MeasuredOption]()
    live: dict[tuple[str, ParameterSet], Tensor] = {}  # quantized weights that this or a later option uses
    for i, option in enumerate(slot.options):
        chosen = {linear.key: (linear.key, option[role]) for role, linear in slot.linears}
        works = dict[tuple[str, ParameterSet], Work[Tensor]]()
        for key, wanting in chosen.items():
            if wanting not in live:
                run = partial(_dense, part.probes[key], factors[key], wanting[1], rounding, part.device)
                works[wanting] = Work(part.probes[key].original.numel(), run)
        live |= spread(devices, works)
        for key, wanting in chosen.items():
            part.probes[key].weight = live[wanting]
        accuracy = max(MIN_ACCURACY, 1 - relative_error(part(judged), judged_wanted))
        measured.append(MeasuredOption(accuracy, slot.num_bits(option), option))
        needed = {(linear.key, later[role]) for later in slot.options[i + 1 :] for role, linear in slot.linears}
        live = {key: weight for key, weight in live.items() if key in needed}
    best = max(option.accuracy for option in measured)
    if best < MIN_BEST_ACCURACY:
        raise CalibrationError(
            f"{slot.name}: the best option keeps an accuracy of {best:.3f}, expected at least {MIN_BEST_ACCURACY}; "
            "the source model may be damaged, check that it generates sense before converting"
        )
    return wanted, measured


def _dense(
    probe: Probe, factor: Factor, chosen: ParameterSet, rounding: Rounding, home: torch.device, device: torch.device
) -> Tensor:
    """[K, N]"""
    layout = chosen.layout(probe.node.in_features)
    return quantize(probe.original.to(device), factor.to(device), layout, rounding).dense.to(home)


def _judged(states: Tensor) -> Tensor:
    """[R, L, E] -> the first half of every second row: a Hessian needs many tokens, a mean error does not."""
    return states[::2, : -(-states.shape[1] // 2)]
