"""Everything that a report says, gathered once: the page, the picture and the card only choose words and places."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from polybit.format.hub import hub_id_of
from polybit.model.sizes import MatrixSize, bits_per_weight, file_bytes, head_size, layer_sizes
from polybit.model.source import ModelSource
from polybit.quantizer.measure import MeasuredOption
from polybit.quantizer.measurement import predicted_nats
from polybit.quantizer.options import ConvertOptions, ConvertResult
from polybit.quantizer.slots import Slot, slots_of
from polybit.quantizer.tested import SelfTest

# What a reader can use. Folders of whoever converted are nobody's business.
TOLD_SETTINGS = ("bits", "head_bits", "method", "rows", "length", "rope_scale", "rope_alpha")


@dataclass(frozen=True)
class Matrix:
    """One matrix of a layer, or all experts' of one kind together."""

    layer: int
    role: str  # q, k, v, o, gate, up, down
    count: int  # of experts
    num_weights: int
    bits: float  # a weight, everything that is stored for it counted
    error: float | None  # relative, of its output on held-out text; None: not tested, or no token reached it


@dataclass(frozen=True)
class Findings:
    name: str  # of the source
    base_model: str | None  # its id on the Hub, where that is known
    architecture: str
    num_layers: int
    bits: float  # reached
    head_bits: float
    source_bytes: int
    result_bytes: int
    matrices: tuple[Matrix, ...]  # layer by layer
    predicted: float | None  # nats, by what the chosen options were priced at; None: not priced in nats
    test: SelfTest | None
    calibration: Mapping[str, Any]  # as in config.json
    seconds: Mapping[str, float]
    settings: Mapping[str, str]
    machine: str
    version: str

    @property
    def roles(self) -> list[str]:
        """In the order of the layers that have most."""
        return list(dict.fromkeys(matrix.role for matrix in self.matrices))

    @property
    def title(self) -> str:
        return f"{self.name}, EXL2 at {self.bits:.2f} bits a weight"


def gather(
    source: ModelSource,
    written: ModelSource,
    options: ConvertOptions,
    result: ConvertResult,
    chosen: list[MeasuredOption],
    calibration: Mapping[str, Any],
    version: str,
) -> Findings:
    """`written` is the result's folder, `chosen` the option of each slot."""
    priced = options.how.by_loss and options.measurement is None  # another run's method is not known
    head, base_model = head_size(written), hub_id_of(source.folder)
    return Findings(
        name=_name(source.folder, base_model, result.folder),
        base_model=base_model,
        architecture=source.spec.architecture,
        num_layers=len(source.spec.blocks),
        bits=result.bits,
        head_bits=options.head_bits if head is None else head.bpw,
        source_bytes=file_bytes(source),
        result_bytes=file_bytes(written),
        matrices=tuple(_matrices(written, result.self_test)),
        predicted=predicted_nats(chosen) if priced else None,
        test=result.self_test,
        calibration=calibration,
        seconds=result.seconds,
        settings=dict(_settings(options)),
        machine=f"{result.device}, rounding by {result.rounding}",
        version=version,
    )


def _name(folder: Path, base_model: str | None, result: Path) -> str:
    """What people call the source. A hidden folder is a file unpacked in passing, and has no name of its own."""
    if base_model is not None:
        return base_model.partition("/")[2]
    return result.name if folder.name.startswith(".") else folder.resolve().name


def _matrices(written: ModelSource, test: SelfTest | None) -> Iterator[Matrix]:
    errors = {} if test is None else test.matrix_errors
    for layer, (block, sizes) in enumerate(zip(written.spec.blocks, layer_sizes(written), strict=True)):
        by_key = {size.key: size for size in sizes}
        for slot in slots_of(block):
            yield from (_matrix(layer, role, slot, by_key, errors) for role in slot.roles)


def _matrix(layer: int, role: str, slot: Slot, sizes: Mapping[str, MatrixSize], errors: Mapping[str, float]) -> Matrix:
    keys = [linear.key for linear in slot.roles[role]]
    members, found = [sizes[key] for key in keys], [errors[key] for key in keys if key in errors]
    return Matrix(
        layer,
        role,
        len(keys),
        sum(size.num_weights for size in members),
        bits_per_weight(members),
        sum(found) / len(found) if found else None,
    )


def _settings(options: ConvertOptions) -> Iterator[tuple[str, str]]:
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name in TOLD_SETTINGS and value is not None:
            yield field.name.replace("_", " "), f"{value:g}" if isinstance(value, float) else str(value)
    yield "measurement", "made for this" if options.measurement is None else "of an earlier run"
