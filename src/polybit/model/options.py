"""How a model is loaded: one frozen dataclass. CLI flags and `polybit.load` arguments come from its fields."""

from dataclasses import dataclass

from polybit.errors import ConfigError
from polybit.fields import check_kinds


@dataclass(frozen=True)
class LoadOptions:
    """None means: chosen by the rule that the field's comment states, and said in the log.

    ConfigError: a value of another type. Ranges are checked where a value meets the model or the machine.
    """

    device: str | None = None  # cpu, cuda, cuda:N, mps; None: POLYBIT_DEVICE, else CUDA if there is one, else the CPU
    dtype: str | None = None  # float32, float16, bfloat16 of activations; None: float32 on the CPU, float16 elsewhere
    backend: str | None = None  # None: the fastest that serves the device
    # GiB of each GPU that model, cache and work space may take, as "10,22", or auto: all that is free on every GPU.
    # None: auto where no device is named. A GPU is only used where those before it do not suffice.
    gpu_split: str | None = None
    offload: bool = False  # layers that no GPU has room for live in RAM and are copied at each use, which is slow
    max_seq_len: int | None = None  # tokens a sequence may reach; None: what config.json says
    rope_scale: float | None = None  # replaces the model's rope scaling: positions divided by this
    rope_alpha: float | None = None  # NTK alpha: stretches the rope base
    rope_yarn: float | None = None  # replaces the model's rope scaling: YaRN by this factor
    # Hold quantized weights dequantized, which takes more memory, and less time with kernels that do not read packed
    # ones. None: with such kernels, where the weights take at most half of the free memory.
    unpacked: bool | None = None
    threads: int | None = None  # of the CPU; None: as many as torch would use, at most one for each physical core
    # Keys and values: fp16 (the activations' type, whatever it is), q8, q6 (keys 8, values 4 bits), q4, or bits of both
    # as in k8v4.
    cache: str = "fp16"
    graphs: bool = True  # generate with CUDA graphs where the model can: faster, for some memory

    def __post_init__(self) -> None:
        check_kinds(self, ConfigError)
