"""What a conversion takes, from names and shapes alone, before anything is read or written."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from polybit import spec
from polybit.format.exl2 import storage_bits
from polybit.model.source import vector_shapes
from polybit.quantizer.candidates import HEAD_SETS
from polybit.quantizer.operations import active_share
from polybit.quantizer.options import ConvertOptions
from polybit.quantizer.part import RESIDENT_BYTES, TOKENS_AT_ONCE
from polybit.quantizer.target import Target

FLOAT = 4  # bytes of a number while it is computed with
PROCESS_BYTES = 700 << 20  # what Python, torch and its libraries take
PASS_STATES = 3  # numbers that a pass holds for each feature of each token: inputs, outputs, gradients
PAIR_STATES = 7  # that quantizing holds: the pairs that a layer and its MLP get, one that is made, half of it anew
HEAD_COPIES = 4  # the weights, those that replace them, and what rounding works on
MATRIX_COPIES = 5
FACTOR_COPIES = 3  # of statistics: as they are trusted, and two that factorizing works on
KEPT_FOR_GRADIENTS = 3  # numbers for each that a forward pass makes
STATE_COPIES = 4  # of quantizing: the last ones saved, and those that take their place


@dataclass(frozen=True)
class DiskNeeds:
    """Bytes, at the most."""

    results: tuple[int, ...]  # of each model, small files beside its weights not counted
    work: int  # of the job's folder


@dataclass(frozen=True)
class MemoryNeeds:
    """Bytes, about, at the most. Text of the model's own and tuning are not counted: they take what there is."""

    device: int  # of the device that computes
    ram: int  # beside that, where the device is no processor; the process itself included
    resident: int  # states, of which a device that is no processor has copies for the length of a layer
    helper: int  # of each further device, which rounds one matrix at a time


def memory_needs(model: spec.Model, options: ConvertOptions) -> MemoryNeeds:
    """One layer or the head is on the device, states of all rows and the embedding are in RAM."""
    tokens, width = _num_tokens(options), model.hidden_size
    layers = max(_layer_bytes(model, block) for block in model.blocks)
    head = FLOAT * (HEAD_COPIES * model.head.linear.in_features * model.head.linear.padded_out_features + width**2)
    states = FLOAT * tokens * width
    table = (FLOAT + 2) * model.embedding.num_rows * width  # as stored, and in fp32
    helper = FLOAT * max(map(_matrix_numbers, model.linears))
    return MemoryNeeds(
        device=max(layers, head),
        ram=PROCESS_BYTES + PAIR_STATES * states + table,
        resident=_resident(states),
        helper=helper,
    )


def _resident(states: int) -> int:
    if 2 * states <= RESIDENT_BYTES:
        return PAIR_STATES * states
    return PASS_STATES * states if states <= RESIDENT_BYTES else 0


def _matrix_numbers(linear: spec.Linear) -> int:
    """That rounding a matrix works on where it is alone."""
    return (1 + MATRIX_COPIES) * linear.in_features * linear.padded_out_features + FACTOR_COPIES * linear.in_features**2


def _layer_bytes(model: spec.Model, block: spec.Block) -> int:
    """Both ways of handling one: backward all matrices' statistics gather at once, later those of one input's."""
    linears = (*block.attn.linears, *block.mlp.linears)
    weights = sum(linear.in_features * linear.padded_out_features for linear in linears)
    judging = weights + sum(linear.in_features**2 for linear in linears)
    largest = max(linear.in_features * linear.padded_out_features for linear in linears)
    widest = max(linear.in_features for linear in linears)
    rounding = 2 * weights + MATRIX_COPIES * largest + FACTOR_COPIES * widest**2
    attended, fed = (sum(linear.out_features for linear in part.linears) for part in (block.attn, block.mlp))
    made = model.hidden_size + attended + fed * active_share(block.mlp)
    activations = TOKENS_AT_ONCE * made
    return int(FLOAT * max(judging + KEPT_FOR_GRADIENTS * activations, rounding + activations))


def disk_needs(model: spec.Model, options: ConvertOptions, targets: Sequence[Target]) -> DiskNeeds:
    """A model's matrices lie in the job's folder until all of them are there, and are then written into the result."""
    made = () if options.measure_only else targets
    results = tuple(result_bytes(model, target.bits, options.head_bits) for target in made)
    states = FLOAT * _num_tokens(options) * model.hidden_size
    judging = len(model.blocks) * states if options.how.by_loss else 0  # which go before matrices come
    matrices = max(results, default=_unquantized_bytes(model)) - _unquantized_bytes(model)
    return DiskNeeds(results, STATE_COPIES * states + max(judging, matrices))


def result_bytes(model: spec.Model, bits: float, head_bits: int) -> int:
    """Of a converted model's weight files."""
    weights = sum(linear.in_features * linear.padded_out_features for linear in model.linears)
    return int(weights * bits) // 8 + head_bytes(model, head_bits) + _unquantized_bytes(model)


def source_bytes(model: spec.Model) -> int:
    """Of the unquantized model at 16 bits a number."""
    head = 0 if model.head.tied else model.head.linear.in_features * model.head.linear.out_features
    layers = sum(linear.in_features * linear.out_features for linear in model.linears)
    return 2 * (layers + head) + _unquantized_bytes(model)


def head_bytes(model: spec.Model, head_bits: int) -> int:
    """Of the last matrix."""
    head = model.head.linear
    return storage_bits(HEAD_SETS[head_bits].layout(head.in_features), head.padded_out_features, False) // 8


def _unquantized_bytes(model: spec.Model) -> int:
    """Embeddings, norms and routers, in fp16."""
    return 2 * sum(prod(shapes[0]) for shapes in vector_shapes(model).values())


def _num_tokens(options: ConvertOptions) -> int:
    """Of the larger of the two sets of calibration rows."""
    return max(options.rows * options.length, options.measure_rows * options.measure_length)
