"""How much a step takes on: as many tokens of prompts as memory is planned for, fewer where others wait beside them."""

import torch

from polybit import spec
from polybit.generator.scheduler import FEWEST_BESIDE, Limits
from polybit.model.footprint import CHUNK_TOKENS
from polybit.model.model import Model

MAX_BATCH = 64  # requests that run at once, by default
STALL_SECONDS = 0.1  # that a chunk of a prompt may keep others from their next token
SPEED = {9: 3e12, 10: 3e12}  # operations a second of one multiprocessor in long products, by compute capability
SPEED_OF_OTHERS = 5e11


def step_limits(model: Model, max_batch: int = MAX_BATCH) -> Limits:
    """Prompts in chunks for which the plan of memory has room, beside a next token of each request."""
    chunk = min(CHUNK_TOKENS, model.max_seq_len)
    beside = min(tokens_within(STALL_SECONDS, model.spec, _speed(model.device)), chunk - max_batch)
    return Limits(max_batch, chunk, max(beside, FEWEST_BESIDE))


def tokens_within(seconds: float, model: spec.Model, speed: float) -> int:
    """How many tokens of prompts go through the model; `speed` in operations a second."""
    operations = 2 * sum(linear.in_features * linear.out_features for linear in model.linears)
    return int(seconds * speed / operations)


def _speed(device: torch.device) -> float:
    """Roughly; 0 for what is no GPU."""
    if device.type != "cuda":
        return 0.0
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count * SPEED.get(properties.major, SPEED_OF_OTHERS)
