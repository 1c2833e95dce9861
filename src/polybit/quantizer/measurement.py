"""measurement.json: what every option of every module costs, in the shape that EXL2 quantizers share (format 10.4)."""

import json
from pathlib import Path
from typing import Any

from polybit import spec
from polybit.errors import JobError
from polybit.format.files import atomic_write_json
from polybit.quantizer.candidates import ParameterSet
from polybit.quantizer.measure import MeasuredOption
from polybit.quantizer.slots import Slot, slots_of

Measurement = list[list[MeasuredOption]]  # by slot in model order: attention, MLP, attention, ...


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
    """JobError: missing, not a measurement, or of another model."""
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
    return [_read_slot(entries, block, slot, path) for block in model.blocks for slot in slots_of(block)]


def _read_slot(entries: dict[str, Any], block: spec.Block, slot: Slot, path: Path) -> list[MeasuredOption]:
    options = entries.get(slot.name)
    if isinstance(block, spec.ParallelBlock):
        pair = entries.get(_parallel_name(block))
        options = pair.get("attn" if "q" in slot.roles else "mlp") if isinstance(pair, dict) else None
    if not isinstance(options, list) or not options:
        raise JobError(f"{path} has no options for {slot.name}; it was measured on another model, measure this one")
    return [read_option(option, slot, f"{path}: {slot.name} option {i}") for i, option in enumerate(options)]


def option_json(option: MeasuredOption, slot: Slot) -> dict[str, Any]:
    """One option as measurement files have it."""
    sets = {slot.json_roles[role]: chosen.to_json() for role, chosen in option.sets.items()}
    return {"accuracy": option.accuracy, "total_bits": option.num_bits, **sets}


def read_option(value: Any, slot: Slot, where: str) -> MeasuredOption:
    """The inverse; bits are counted anew for this model. JobError names `where`."""
    try:
        accuracy = float(value["accuracy"])
        found = {role: value[name] for role, name in slot.json_roles.items()}
    except (KeyError, TypeError, ValueError):
        raise JobError(f"{where} lacks an accuracy or a parameter set; measure again") from None
    if not 0 < accuracy <= 1:
        raise JobError(f"{where} has accuracy {accuracy}, expected a number above 0 and at most 1; measure again")
    sets = {role: ParameterSet.from_json(value, f"{where}, {slot.json_roles[role]}") for role, value in found.items()}
    return MeasuredOption(accuracy, slot.num_bits(sets), sets)


def _parallel_name(block: spec.Block) -> str:
    return block.attn.q.key.rsplit(".", 2)[0] + ".parallel_decoder"
