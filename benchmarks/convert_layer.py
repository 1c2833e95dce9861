"""What a layer of a conversion takes: seconds by stage and peak memory, on synthetic layers of a large model's shape.

    PYTHONPATH=src python benchmarks/convert_layer.py --shape 8b [--layers 1] [--bits 4.0] [--json FILE]

Each layer goes through what `polybit convert` does to it with default settings: forward to keep its inputs, back from
the loss for sensitivities and prices, and rounding, with its files read and written. Calibration is 16 rows of 512
tokens unless said otherwise. First a small layer is converted on the device and, in plain torch, on the CPU: where the
two differ there are no figures, and the program exits with 1. Progress goes to stderr, JSON to stdout.
"""

import argparse
import json
import platform
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from card import driver
from polybit import arch
from polybit.bench.report import source_commit
from polybit.bench.shapes import SHAPES
from polybit.kernels import reference
from polybit.kernels.reference import rounding as plain
from polybit.kernels.rounding import Rounding, choose_rounding
from polybit.model.device import choose_devices
from polybit.model.source import open_model, vector_shapes
from polybit.modules.rope import RopeTables
from polybit.quantizer import passes
from polybit.quantizer.job import Job
from polybit.quantizer.measure import MeasuredOption
from polybit.quantizer.method import METHODS
from polybit.quantizer.options import ConvertOptions
from polybit.quantizer.part import Part
from polybit.quantizer.sensitivity import keep_sensitivities, kept_sensitivities
from polybit.quantizer.slots import slots_of

VOCABULARY = 1024  # small: the loss is no part of a layer
SMALL = {"hidden_size": 256, "intermediate_size": 448, "num_attention_heads": 8, "num_key_value_heads": 4}
TOLERANCE = 0.03  # of a part's error, of an option's nats and of the columns' sensitivities, relative
DEFAULTS = ConvertOptions()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("8b", "70b", "small"), default="8b")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--bits", type=float, default=4.0)
    parser.add_argument("--rows", type=int, default=DEFAULTS.rows)
    parser.add_argument("--length", type=int, default=DEFAULTS.length)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--helpers", nargs="+", default=[], metavar="DEVICE", help="take matrices too; parts are then not timed apart"
    )
    parser.add_argument(
        "--folder", type=Path, help="where the model and the results lie meanwhile; else a temporary one"
    )
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    device, *helpers = choose_devices(",".join((given.device, *given.helpers)))
    with torch.no_grad(), tempfile.TemporaryDirectory(dir=given.folder) as folder:
        started = time.perf_counter()
        check(Path(folder), device)
        tell(f"check: green ({time.perf_counter() - started:.1f} s, compilation included)")
        found = measure(Path(folder) / given.shape, given, device, helpers)
    report = about(device) | found
    print(json.dumps(report, indent=2))
    if given.json is not None:
        given.json.write_text(json.dumps(report, indent=2) + "\n")


def about(device: torch.device) -> dict[str, Any]:
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {"commit": source_commit(), "card": card, "driver": driver(), "torch": torch.__version__}


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# ---- a layer as a conversion treats it


@dataclass
class Conversion:
    """The stages of layers on their own: what `polybit.quantizer.convert` runs, without text and without a head."""

    bench: passes.Workbench
    job: Job
    bits: float
    options: list[list[MeasuredOption]] = field(default_factory=list)  # by layer's part, in model order
    errors: dict[str, float] = field(default_factory=dict)

    def forward(self, layer: int, x: Tensor) -> Tensor:
        self.job.keep_tensors(f"forward/{layer}", {"states": x})
        return self.bench.open(layer).advance(x, lambda part, part_input: part(part_input))

    def back(self, layer: int, gradient: Tensor) -> Tensor:
        x = self.job.kept_tensors(f"forward/{layer}")["states"]
        gradient, found, options = passes.go_back(self.bench, layer, x, gradient, priced=True)
        keep_sensitivities(self.job, layer, found)
        self.options[:0] = options
        return gradient

    def quantize(self, layer: int, states: Tensor) -> Tensor:
        slots = slots_of(self.bench.source.spec.blocks[layer])
        chosen = [
            min(options, key=lambda option: abs(option.num_bits - self.bits * slot.num_weights)).sets
            for slot, options in zip(slots, self.options[2 * layer : 2 * layer + 2], strict=True)
        ]
        sensitivities = kept_sensitivities(self.job, layer, self.bench.device)
        states, errors = passes.quantize_layer(self.bench, self.job, layer, states, chosen, sensitivities)
        self.errors |= errors
        return states


def open_conversion(model: Path, device: torch.device, rounding: Rounding, bits: float) -> Conversion:
    source = open_model(model)
    ropes = RopeTables(source.spec.max_seq_len, device)
    bench = passes.Workbench(source, ropes, reference, rounding, device, METHODS[DEFAULTS.method])
    return Conversion(bench, Job(model / f"job-{device.type}-{rounding.NAME}", {}), bits)


def config_of(shape: str, num_layers: int) -> dict[str, Any]:
    config = SHAPES["llama-8b"] | SMALL if shape == "small" else SHAPES[f"llama-{shape}"]
    return {**config, "num_hidden_layers": num_layers, "vocab_size": VOCABULARY}


def write_model(folder: Path, config: Mapping[str, Any], device: torch.device) -> Path:
    """A model of random fp16 weights made on the device, a file a layer."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    model, make = arch.read_model(dict(config), where=str(folder)), torch.Generator(device).manual_seed(0)
    shapes = {name: found[0] for name, found in vector_shapes(model).items()}
    shapes |= {f"{linear.key}.weight": (linear.out_features, linear.in_features) for linear in model.linears}
    shapes[f"{model.head.linear.key}.weight"] = (config["vocab_size"], model.hidden_size)
    for part, names in groupby(sorted(shapes, key=_part), _part):
        save_file({name: _random(shapes[name], make) for name in names}, folder / f"{part}.safetensors")
    return folder


def _part(name: str) -> str:
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    return f"layer-{layer[1]}" if layer else "ends"


def _random(shape: tuple[int, ...], make: torch.Generator) -> Tensor:
    """A matrix that keeps the size of what it multiplies, or a norm's weight around one."""
    values = torch.randn(shape, generator=make, device=make.device)
    return (values / shape[1] ** 0.5 if len(shape) > 1 else 1 + 0.1 * values).half().cpu()


def random_states(rows: int, length: int, hidden: int) -> Tensor:
    """[R, L, E], features of unequal sizes that share a few directions, as real ones do."""
    make = torch.Generator().manual_seed(1)
    sizes = (torch.randn(hidden, generator=make) * 0.7).exp()
    shared = torch.randn(rows, length, 16, generator=make) @ torch.randn(16, hidden, generator=make)
    return (torch.randn(rows, length, hidden, generator=make) + 0.25 * shared) * sizes


# ---- the check


def check(folder: Path, device: torch.device) -> None:
    """Leaves the program where the device's results are not the CPU's."""
    model = write_model(folder / "checked", config_of("small", 1), torch.device("cpu"))
    x = random_states(4, 128, SMALL["hidden_size"])
    expected = convert(open_conversion(model, torch.device("cpu"), plain, 4.0), x)
    found = convert(open_conversion(model, device, choose_rounding(device), 4.0), x)
    wrong = list(differences(found, expected))
    if wrong:
        tell("check: red, so there are no figures")
        sys.exit("\n".join(wrong))


def convert(conversion: Conversion, x: Tensor) -> Conversion:
    """One layer through all stages."""
    last = conversion.forward(0, x)
    conversion.back(0, passes.loss_gradient(conversion.bench, last, lambda done, total: None))
    conversion.quantize(0, torch.stack([x, x]))
    return conversion


def differences(found: Conversion, expected: Conversion) -> Iterator[str]:
    for name, wanted in expected.errors.items():
        yield from _different(f"{name}: error of its outputs", found.errors[name], wanted)
    key = expected.bench.source.spec.blocks[0].mlp.linears[-1].key
    ours, theirs = (kept_sensitivities(each.job, 0, torch.device("cpu"))[key].columns for each in (found, expected))
    yield from _different(f"{key}: sensitivities", float((ours - theirs).norm() + theirs.norm()), float(theirs.norm()))
    for ours, theirs in zip(found.options, expected.options, strict=True):
        by_bits = {option.num_bits: (1 - option.accuracy) ** 2 for option in theirs}
        common = [o for o in ours if o.num_bits in by_bits]
        yield from _different("options in common", len(common) / len(theirs), 1.0, tolerance=0.5)
        for option in common:
            yield from _different(
                f"nats at {option.num_bits} bits", (1 - option.accuracy) ** 2, by_bits[option.num_bits]
            )


def _different(what: str, found: float, wanted: float, tolerance: float = TOLERANCE) -> Iterator[str]:
    if not abs(found - wanted) <= tolerance * abs(wanted):
        yield f"{what}: {found:.6g} on the device, {wanted:.6g} by plain torch on the CPU"


# ---- the clock


class Stopwatch:
    """Seconds by name, each without those of what it calls; peak memory of each. The device is waited for."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._inner = [0.0]
        self.seconds = Counter[str]()
        self.peak_gb = Counter[str]()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        started = self._now()
        self._inner.append(0.0)
        try:
            yield
        finally:
            whole = self._now() - started
            self.seconds[name] += whole - self._inner.pop()
            self._inner[-1] += whole
            self.peak_gb[name] = max(self.peak_gb[name], self._peak())

    def follow(self, owner: Any, attribute: str, name: str) -> None:
        """Count what `owner.attribute` takes from here on."""
        original: Callable[..., Any] = getattr(owner, attribute)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return original(*args, **kwargs)

        setattr(owner, attribute, timed)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _peak(self) -> float:
        """Since the part before ended: what is inside a part is told of it and not of the whole."""
        if self._device.type != "cuda":
            return 0.0
        peak = torch.cuda.max_memory_allocated(self._device) / 1e9
        torch.cuda.reset_peak_memory_stats(self._device)
        return peak


FOLLOWED: tuple[tuple[Any, str, str], ...] = (
    (passes, "open_block", "weights read"),
    (Part, "__call__", "layer run"),
    (Part, "hear", "Hessians and drifts"),
    (passes, "backward", "gradients and their Hessians"),
    (passes, "factorize", "factorizations"),
    (passes, "weigh_rows", "factorizations"),
    (passes, "block_costs", "options priced"),
    (passes, "quantize_fitted", "scales fitted and rows rounded"),
    (passes, "descend", "coordinate descent"),
    (passes, "keep", "packed and checked"),
    (Job, "keep_tensors", "files written"),
    (Job, "kept_tensors", "states read back"),
)


def measure(
    folder: Path, given: argparse.Namespace, device: torch.device, helpers: Sequence[torch.device]
) -> dict[str, Any]:
    write_model(folder, config_of(given.shape, given.layers), device)
    conversion = open_conversion(folder, device, choose_rounding(device), given.bits)
    conversion.bench = replace(conversion.bench, helpers=tuple(helpers))
    x = random_states(given.rows, given.length, conversion.bench.source.spec.hidden_size)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    clock, stages = Stopwatch(device), dict[str, float]()
    for owner, attribute, name in () if given.helpers else FOLLOWED:
        clock.follow(owner, attribute, name)

    def stage(name: str, run: Callable[[int, Tensor], Tensor], layers: range, state: Tensor) -> Tensor:
        started, before = time.perf_counter(), clock.seconds.copy()
        for layer in layers:
            with clock.part(f"{name}: the rest"):
                state = run(layer, state)
        stages[name] = (time.perf_counter() - started) / given.layers
        tell(f"{name}: {stages[name]:.2f} s a layer")
        for part, seconds in clock.seconds.items():
            if seconds - before[part] >= 0.005:
                tell(f"    {part}: {(seconds - before[part]) / given.layers:.3f} s")
        return state

    order = range(given.layers)
    last = stage("forward", conversion.forward, order, x)
    gradient = passes.loss_gradient(conversion.bench, last, lambda done, total: None)
    stage("backward", conversion.back, order[::-1], gradient)
    stage("quantize", conversion.quantize, order, torch.stack([x, x]))
    total = sum(stages.values())
    peak = max(clock.peak_gb.values())
    tell(f"total: {total:.2f} s a layer, at most {peak:.2f} GB of the device at once")
    reserved = torch.cuda.max_memory_reserved(device) / 1e9 if device.type == "cuda" else 0.0
    return {
        "shape": given.shape,
        "layers": given.layers,
        "helpers": given.helpers,
        "bits": given.bits,
        "method": DEFAULTS.method,
        "calibration": {"rows": given.rows, "tokens_a_row": given.length, "tokens": given.rows * given.length},
        "rounding": conversion.bench.rounding.NAME,
        "seconds_a_layer": round(total, 3),
        "by_stage": {name: round(seconds, 3) for name, seconds in stages.items()},
        "by_part": {name: round(seconds / given.layers, 3) for name, seconds in clock.seconds.most_common()},
        "peak_gb": round(peak, 2),
        "peak_gb_by_part": {name: round(gb, 2) for name, gb in clock.peak_gb.most_common()},
        "reserved_gb": round(reserved, 2),
        "relative_errors": {name: round(error, 5) for name, error in conversion.errors.items()},
    }


if __name__ == "__main__":
    main()
