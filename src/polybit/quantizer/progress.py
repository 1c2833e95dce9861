"""How far a conversion is: its stages as they are told, each with its share of the whole."""

from collections.abc import Callable
from dataclasses import dataclass

from polybit.quantizer.options import ConvertProgress, Report

Advance = Callable[[int, int], None]  # parts of a stage done, parts in all

SHARES = {
    "calibrate": 0.09,
    "forward": 0.08,
    "loss": 0.07,
    "backward": 0.37,
    "measure": 0.42,
    "quantize": 0.34,
    "head": 0.04,
    "write": 0.01,
}  # of a whole job's time, roughly


@dataclass(frozen=True)
class Teller:
    """Reports parts of stages as parts of the job, whose `stages` are in order."""

    stages: tuple[str, ...]
    report: Report

    def __call__(self, stage: str, done: int, total: int) -> None:
        whole = sum(SHARES[name] for name in self.stages)
        before = sum(SHARES[name] for name in self.stages[: self.stages.index(stage)])
        fraction = (before + SHARES[stage] * done / total) / whole
        self.report(ConvertProgress(stage, done, total, fraction))
