"""What a conversion would make and take, said before anything is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from polybit import spec
from polybit.quantizer.begin import making_stages, told_judging
from polybit.quantizer.needs import DiskNeeds, MemoryNeeds, disk_needs, memory_needs
from polybit.quantizer.operations import operations
from polybit.quantizer.options import ConvertOptions
from polybit.quantizer.target import Target

EFFICIENCY = 0.6  # of the rate at which a device multiplies large matrices; gptq-loss on a CPU was seen at 0.3 to 0.7


@dataclass(frozen=True)
class Estimate:
    disk: DiskNeeds
    memory: MemoryNeeds
    seconds: Mapping[str, float]  # by stage, of all models together; good to a factor of two


def estimate(
    model: spec.Model, options: ConvertOptions, targets: Sequence[Target], operations_per_second: float
) -> Estimate:
    """`operations_per_second`: of large fp32 products on the device that is to convert."""
    work, rate = operations(model, options), EFFICIENCY * operations_per_second
    times = dict.fromkeys(told_judging(options), 1) | dict.fromkeys(making_stages(options), len(targets))
    seconds = {stage: count * work[stage] / rate for stage, count in times.items() if stage in work}
    return Estimate(disk_needs(model, options, targets), memory_needs(model, options), seconds)
