"""What a conversion is asked for, what it says on the way, and what it gives back."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from polybit.errors import JobError
from polybit.fields import check_kinds, path_of
from polybit.quantizer.candidates import HEAD_SETS
from polybit.quantizer.method import METHODS, Method
from polybit.quantizer.tested import SelfTest


@dataclass(frozen=True)
class ConvertOptions:
    """Rows and lengths are of calibration text; more of it is slower and a little better. JobError: a value's type."""

    # Average over the decoder's matrices, overheads included; a command line may ask for several.
    bits: float = field(default=4.0, metadata={"no_option": True})
    head_bits: int = 6
    calibration: str | None = None  # a txt, jsonl or parquet file, a folder, a Hub dataset; None: found text
    rows: int = 16
    length: int = 512  # tokens a row
    measure_rows: int = 4  # what gptq-v2 judges options on
    measure_length: int = 512
    method: str = "gptq-loss"
    tune: bool = False  # norms, biases and scale maxima after rounding
    shard_mb: int = 8192
    work_dir: Path | None = None  # None: a hidden folder inside the result; deleted at the end
    measurement: Path | None = None  # of an earlier run on this model, instead of measuring
    save_measurement: Path | None = None  # one more copy of the measurement
    measure_only: bool = False
    self_test: bool = True  # compare the result with the source on a little text; SelfTestFailed where it is garbage
    push_to_hub: str | None = None  # OWNER/NAME of a repository on the Hub that the result is uploaded to
    public: bool = False  # whether anybody sees a repository that this makes
    resume: bool = True  # continue an interrupted job; False: delete what it left
    device: str | None = None
    devices: str | None = None  # several of one kind, as cuda:0,cuda:1: the first is `device`, all round matrices
    rope_scale: float | None = None
    rope_alpha: float | None = None

    def __post_init__(self) -> None:
        for name in ("work_dir", "measurement", "save_measurement"):
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, path_of(name, given, JobError))
        if isinstance(self.calibration, Path):
            object.__setattr__(self, "calibration", str(self.calibration))
        check_kinds(self, JobError)

    @property
    def first_device(self) -> str | None:
        """That holds a layer, and the model where it is needed whole; None: nobody said."""
        return self.device if self.devices is None else self.devices.partition(",")[0].strip()

    @property
    def how(self) -> Method:
        return METHODS[self.method]


@dataclass(frozen=True)
class ConvertProgress:
    """`done` of `total` parts of this stage, layers as a rule; `fraction` is of the whole job."""

    stage: str
    done: int
    total: int
    fraction: float
    bits: float | None = None  # of the model that is being made, where there are several


Report = Callable[[ConvertProgress], None]


@dataclass(frozen=True)
class ConvertResult:
    """`errors`: relative output error of each attention and MLP, on the quantized outputs of the layers before it.

    What it makes up for on purpose, errors of these layers, counts as error too.
    """

    folder: Path
    bits: float  # reached, over the decoder's matrices; 0 where only measuring was asked for
    errors: dict[str, float]
    measurement: Path
    rounding: str  # "numba", "triton" or "torch"
    device: str
    seconds: dict[str, float]  # by stage; of one that was interrupted, what came after
    self_test: SelfTest | None = None


def check_options(options: ConvertOptions) -> None:
    """JobError for a value that no job can have. Bits are checked with the targets that they make."""
    if options.head_bits not in HEAD_SETS:
        raise JobError(f"head_bits is {options.head_bits}, expected one of {', '.join(map(str, HEAD_SETS))}")
    if options.method not in METHODS:
        raise JobError(f"method {options.method!r} does not exist, expected one of {', '.join(METHODS)}")
    if options.measure_only and options.measurement is not None:
        raise JobError("measure_only makes a measurement, and measurement brings one; give one of the two")
    if options.calibration == "":
        raise JobError("calibration is '', expected a file, a folder or a dataset's id; leave it out for found text")
    if options.device is not None and options.devices is not None:
        raise JobError(f"device {options.device} and devices {options.devices} are both given; give one of the two")
    if options.measure_only and options.push_to_hub is not None:
        raise JobError(f"measure_only makes no model for {options.push_to_hub}; leave out one of the two")
    if options.public and options.push_to_hub is None:
        raise JobError(
            "public is about a repository on the Hub, but push_to_hub names none; give it or leave public out"
        )
    for name, least in (("rows", 1), ("measure_rows", 1), ("length", 2), ("measure_length", 2), ("shard_mb", 0)):
        if getattr(options, name) < least:
            raise JobError(f"{name} is {getattr(options, name)}, expected at least {least}")
