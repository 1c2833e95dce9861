"""The models that one conversion makes: how many bits each gets, and where it goes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from polybit.errors import JobError


@dataclass(frozen=True)
class Target:
    bits: float
    folder: Path


def targets_of(out: Path, bits: Sequence[float]) -> tuple[Target, ...]:
    """One model is `out` itself; several are folders in it: `Llama` with 2.5 and 3 holds Llama-2.5bpw and Llama-3.0bpw.

    JobError: no bits at all, no number of bits, or the same twice. Whether a model reaches them is another question.
    """
    if not bits:
        raise JobError("bits is an empty list, expected bits per weight such as 4.0")
    for number in bits:
        if not math.isfinite(number) or number <= 0:
            raise JobError(f"bits is {number}, expected a number of bits per weight such as 4.0")
    twice = [number for i, number in enumerate(bits) if number in bits[:i]]
    if twice:
        raise JobError(f"bits asks for {twice[0]:g} twice; give every number once")
    if len(bits) == 1:
        return (Target(bits[0], out),)
    name = out.resolve().name
    return tuple(Target(number, out / f"{name}-{float(number)}bpw") for number in bits)
