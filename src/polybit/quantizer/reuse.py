"""Sensitivities beside a measurement, so that a conversion to other bits need not ask the model's loss again.

They lie in a file of the measurement's name. What they hold of is written in it: this very model and these very
calibration rows. For others, a conversion goes through the model anew, whatever lies there.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polybit import spec
from polybit.errors import JobError
from polybit.quantizer.calibration import Calibration, fingerprint
from polybit.quantizer.job import Job
from polybit.quantizer.kept import read_tensors, write_tensors
from polybit.quantizer.measurement import FILE_NAME
from polybit.quantizer.options import ConvertOptions
from polybit.quantizer.sensitivity import tensors_name

log = logging.getLogger(__name__)

VERSION = 1  # of how sensitivities are found
SUFFIX = ".sensitivities"  # safetensors by format; by name not, because a model's readers take all those for weights
ABOUT = "about"  # a tensor of text: of a file's metadata, the order is not the same at every run

About = Mapping[str, str]


def file_beside(measurement: Path) -> Path:
    """Of a measurement's file, or of the one in a folder."""
    file = measurement / FILE_NAME if measurement.is_dir() else measurement
    return file.with_name(file.name.removesuffix(".json") + SUFFIX)


def about(identity: Mapping[str, Any], options: ConvertOptions, calibration: Calibration) -> About:
    """All that sensitivities depend on, but for the machine; `identity` is a job's."""
    used = calibration.tokens[: options.rows, : options.length]
    ropes = f"{options.rope_scale} {options.rope_alpha}"
    return {"version": str(VERSION), "model": identity["model"], "calibration": fingerprint(used), "ropes": ropes}


def write_sensitivities(job: Job, model: spec.Model, found: About) -> None:
    """Of all layers, as the job keeps them, into one file of its folder."""
    layers = (job.kept_tensors(tensors_name(layer)) for layer in range(len(model.blocks)))
    tensors = {name: each for layer in layers for name, each in layer.items()}
    tensors[ABOUT] = torch.frombuffer(bytearray(json.dumps(found, sort_keys=True).encode()), dtype=torch.uint8)
    write_tensors(file_beside(job.folder), tensors)


def read_sensitivities(measurement: Path, wanted: About) -> dict[str, Tensor] | None:
    """The tensors of all layers; None, and it is logged why, where there are none of what is wanted.

    JobError: they are damaged.
    """
    path = file_beside(measurement)
    if not path.exists():
        log.info("%s is not there, so the model's loss is asked anew", path)
        return None
    try:
        tensors = read_tensors(path)
        found = json.loads(tensors.pop(ABOUT).numpy().tobytes())
    except (JobError, KeyError, ValueError):
        raise JobError(f"{path} is damaged; delete it, and the conversion asks the model's loss anew") from None
    differing = [name for name, value in wanted.items() if found.get(name) != value]
    if differing:
        log.info("%s is of another %s, so the model's loss is asked anew", path, differing[0])
        return None
    return tensors


def keep_reused(job: Job, model: spec.Model, tensors: Mapping[str, Tensor]) -> None:
    """As if the job had gone back through the model itself."""
    for layer, block in enumerate(model.blocks):
        keys = [linear.key for linear in (*block.attn.linears, *block.mlp.linears)]
        names = [f"{key}.{part}" for key in keys for part in ("tokens", "columns")]
        job.keep_tensors(tensors_name(layer), {name: tensors[name] for name in names})
