"""Tuning after rounding: gradient descent on the divergence of the quantized model's predictions from the source's.

What changes are the few numbers of a file that are not packed (see tunable): some hundred a matrix, so that a few
thousand tokens of text say enough about them. Every step takes one row of the calibration text through the whole
quantized model and the gradient back.
"""

import logging
from math import cos, pi

import torch
from torch import Tensor

from polybit.quantizer.job import Job
from polybit.quantizer.passes import Workbench
from polybit.quantizer.progress import Advance
from polybit.quantizer.tunable_model import TunableModel

log = logging.getLogger(__name__)

EPOCHS = 3
RATE = 6e-3  # of a number's size, a step, times the root of the divergence
WARM_UP = 4  # steps
DECAY = 0.9, 0.99  # of the gradient's mean and of its mean square (Adam, arXiv 1412.6980)
WANTED = "tune-wanted"  # name of a kept file


def tune(bench: Workbench, job: Job, tokens: Tensor, advance: Advance) -> dict[str, Tensor]:
    """tokens [R, L] -> the tuned tensors by name (TunableWeights.stored). Goes on where the job stopped."""
    given, num_steps = bench.embed(tokens), EPOCHS * len(tokens)
    if job.progress.layer == 0:
        _, true = job.last_states("quantize", len(bench.source.spec.blocks))
        job.keep_tensors(WANTED, {"states": true})
    wanted, model = job.kept_tensors(WANTED)["states"], TunableModel(bench, job)
    course, divergences = torch.cat([_order(epoch, len(tokens)) for epoch in range(EPOCHS)]), list[float]()

    def step(index: int, state: Tensor) -> Tensor:
        model.load(state[0])
        row = int(course[index])
        divergence, gradient = model.gradient(given[row], wanted[row])
        divergences.append(divergence)
        advance(index + 1, num_steps)
        return descend(state, gradient, divergence, model.sizes, index, num_steps)

    state = job.through_layers("tune", num_steps, lambda: _start(model), step)
    model.load(state[0])
    if len(divergences) == num_steps:
        before, after = (sum(part) / len(tokens) for part in (divergences[: len(tokens)], divergences[-len(tokens) :]))
        log.info("divergence on the calibration text: %.4f nats in the first epoch, %.4f in the last", before, after)
    return model.weights.stored()


def descend(state: Tensor, gradient: Tensor, divergence: float, sizes: Tensor, index: int, num_steps: int) -> Tensor:
    """state [3, P]: values, and the running means of the gradient and of its square, as after step `index`.

    gradient [P] is by shares of the values' sizes [P]; a step is such a share. Divergence grows with the square of an
    error, so steps as large as its root stay in proportion to what is left to mend, at 2 bits and at 6.
    """
    values, mean, square = state
    mean = torch.lerp(gradient, mean, DECAY[0])
    square = torch.lerp(gradient.square(), square, DECAY[1])
    towards = mean / (1 - DECAY[0] ** (index + 1)) / (square / (1 - DECAY[1] ** (index + 1))).sqrt().clamp_min(1e-30)
    left = max(divergence, 0.0) ** 0.5  # which rounding of sums may take below nothing
    rate = RATE * left * min(1.0, (index + 1) / WARM_UP) * (1 + cos(pi * index / num_steps)) / 2
    return torch.stack([values - rate * sizes * towards, mean, square])


def _start(model: TunableModel) -> Tensor:
    return torch.stack([model.values, torch.zeros_like(model.sizes), torch.zeros_like(model.sizes)])


def _order(epoch: int, rows: int) -> Tensor:
    return torch.randperm(rows, generator=torch.Generator().manual_seed(epoch))
