"""How far a conversion is: its stages as they are told, each with its share of the whole."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from polybit.quantizer.options import ConvertProgress, Report

Advance = Callable[[int, int], None]  # parts of a stage done, parts in all

SHARES = {
    "calibrate": 0.09,
    "forward": 0.08,
    "loss": 0.07,
    "backward": 0.37,
    "measure": 0.42,
    "quantize": 0.5,
    "head": 0.04,
    "tune": 1.5,
    "write": 0.01,
    "test": 0.05,
}  # of a whole job's time, roughly


@dataclass(frozen=True)
class Teller:
    """Reports parts of stages as parts of the job: `judging` once, then `making` for each model; both in order."""

    judging: tuple[str, ...]
    making: tuple[str, ...]
    report: Report
    bits: tuple[float, ...]  # of the models
    model: int = 0  # the one being made

    def __call__(self, stage: str, done: int, total: int) -> None:
        judging, making = _share(self.judging), _share(self.making)
        is_making = stage in self.making
        stages = self.making if is_making else self.judging
        before = _share(stages[: stages.index(stage)]) + is_making * (judging + self.model * making)
        fraction = (before + SHARES[stage] * done / total) / (judging + len(self.bits) * making)
        bits = self.bits[self.model] if is_making and len(self.bits) > 1 else None
        self.report(ConvertProgress(stage, done, total, fraction, bits))


def _share(stages: Iterable[str]) -> float:
    return sum(SHARES[name] for name in stages)
