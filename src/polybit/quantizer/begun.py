"""What a conversion was begun with, kept in its job so that the job's folder alone is enough to go on with it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from polybit.errors import PolybitError
from polybit.quantizer.job import Job
from polybit.quantizer.kept import corrupt, read_json
from polybit.quantizer.options import ConvertOptions

NAME = "begun"


@dataclass(frozen=True)
class Begun:
    source: Path  # folder of the unquantized model
    out: Path
    options: ConvertOptions
    bits: Sequence[float]


def keep_begun(job: Job, begun: Begun) -> None:
    options = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(begun.options).items()}
    folders = {"source": str(begun.source.absolute()), "out": str(begun.out.absolute())}
    job.keep_json(NAME, folders | {"options": options, "bits": list(begun.bits)})


def read_begun(folder: Path) -> Begun:
    """As it goes on: not started over. JobError where it is damaged."""
    path = folder / f"{NAME}.json"
    kept = read_json(path)
    try:
        options, bits = ConvertOptions(**kept["options"]), [float(number) for number in kept["bits"]]
        return Begun(Path(kept["source"]), Path(kept["out"]), replace(options, resume=True), bits)
    except (KeyError, TypeError, ValueError, PolybitError):
        raise corrupt(path) from None
