"""measurement.json: what every option of every module costs, in the shape that EXL2 quantizers share (format 10.4).

It does not say of which model it is. Models are told apart by the names of its modules and by the bits that its options
take, which follow from the shapes of their matrices; fine-tunes of one model may well share a measurement.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from polybit import spec
from polybit.errors import JobError
from polybit.format.files import atomic_write_json
from polybit.quantizer.allocate import Choice, allocate
from polybit.quantizer.candidates import ParameterSet
from polybit.quantizer.measure import MeasuredOption
from polybit.quantizer.slots import Slot, all_slots, slots_of

FILE_NAME = "measurement.json"
OTHER_MODEL = "it was measured on another model, measure this one"
SAME_SHAPES = 0.01  # by how much a file's counts may differ: other writers may count small tensors in another way

Measurement = list[list[MeasuredOption]]  # by slot in model order: attention, MLP, attention, ...


def choose(measurement: Measurement, model: spec.Model, bits: float) -> list[MeasuredOption]:
    """The option of each slot that comes to `bits` a weight with the least loss; the same at every run."""
    choices = [[Choice(option.num_bits, option.loss) for option in options] for options in measurement]
    picked = allocate(choices, bits, sum(slot.num_weights for slot in all_slots(model)))
    return [options[i] for options, i in zip(measurement, picked, strict=True)]


def predicted_nats(chosen: Sequence[MeasuredOption]) -> float:
    """What options that were priced in nats come to together."""
    return sum(option.loss for option in chosen)


def write_measurement(path: Path, model: spec.Model, measurement: Measurement) -> None:
    entries: dict[str, Any] = {} if model.positions is None else {f"{model.positions.key}.pos_emb": None}
    found = iter(measurement)
    for block in model.blocks:
        attention, mlp = ([option_json(option, slot) for option in next(found)] for slot in slots_of(block))
        if isinstance(block, spec.ParallelBlock):
            entries[_parallel_name(block)] = {"attn": attention, "mlp": mlp}
        else:
            entries |= {slot.name: part for slot, part in zip(slots_of(block), (attention, mlp), strict=True)}
    entries |= {f"{model.norm.key}.norm": None, f"{model.head.linear.key}.linear": None}
    atomic_write_json(path, {"measurement": entries, "last_module_idx": len(entries)})


def read_measurement(path: Path, model: spec.Model) -> Measurement:
    """Of a file, or of the folder that it lies in. JobError: missing, not a measurement, or of another model."""
    path = path / FILE_NAME if path.is_dir() else path
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["measurement"]
    except OSError as error:
        raise JobError(
            f"measurement {path} cannot be read: {error.strerror}; give the file of an earlier run"
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise JobError(f"{path} is not a measurement file; measure again") from None
    if not isinstance(entries, dict):
        raise JobError(f"{path} was made by a very old version and cannot be reused; measure again")
    found = [_read_slot(entries, block, slot, path) for block in model.blocks for slot in slots_of(block)]
    unknown = {name for name, value in entries.items() if value is not None} - set(_entry_names(model))
    if unknown:
        raise JobError(f"{path} has options for {min(unknown)}, which this model lacks; {OTHER_MODEL}")
    return found


def _read_slot(entries: dict[str, Any], block: spec.Block, slot: Slot, path: Path) -> list[MeasuredOption]:
    options = entries.get(slot.name)
    if isinstance(block, spec.ParallelBlock):
        pair = entries.get(_parallel_name(block))
        options = pair.get("attn" if "q" in slot.roles else "mlp") if isinstance(pair, dict) else None
    if not isinstance(options, list) or not options:
        raise JobError(f"{path} has no options for {slot.name}; {OTHER_MODEL}")
    return [read_option(option, slot, f"{path}: {slot.name} option {i}") for i, option in enumerate(options)]


def option_json(option: MeasuredOption, slot: Slot) -> dict[str, Any]:
    """One option as measurement files have it."""
    sets = {slot.json_roles[role]: chosen.to_json() for role, chosen in option.sets.items()}
    return {"accuracy": option.accuracy, "total_bits": option.num_bits, **sets}


def read_option(value: Any, slot: Slot, where: str) -> MeasuredOption:
    """The inverse; bits are counted anew for this model. JobError names `where`."""
    try:
        accuracy, stated = float(value["accuracy"]), int(value["total_bits"])
        found = {role: value[name] for role, name in slot.json_roles.items()}
    except (KeyError, TypeError, ValueError, OverflowError):
        raise JobError(f"{where} lacks an accuracy, total_bits or a parameter set; measure again") from None
    if not 0 < accuracy <= 1:
        raise JobError(f"{where} has accuracy {accuracy}, expected a number above 0 and at most 1; measure again")
    sets = {role: ParameterSet.from_json(value, f"{where}, {slot.json_roles[role]}") for role, value in found.items()}
    num_bits = slot.num_bits(sets)
    if abs(stated - num_bits) > SAME_SHAPES * num_bits:
        raise JobError(f"{where} takes {stated} bits, but {num_bits} in this model's shapes; {OTHER_MODEL}")
    return MeasuredOption(accuracy, num_bits, sets)


def _entry_names(model: spec.Model) -> Iterator[str]:
    for block in model.blocks:
        if isinstance(block, spec.ParallelBlock):
            yield _parallel_name(block)
        else:
            yield from (slot.name for slot in slots_of(block))


def _parallel_name(block: spec.Block) -> str:
    return block.attn.q.key.rsplit(".", 2)[0] + ".parallel_decoder"
