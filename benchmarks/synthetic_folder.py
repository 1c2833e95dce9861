"""Write a model of random weights into a folder, for what is measured of files: loading, first use, memory.

    PYTHONPATH=src python benchmarks/synthetic_folder.py llama-70b@2.3 FOLDER [--head-bits 6] [--device cuda]

The same shapes, bits and numbers as `polybit bench --synthetic` measures. There is no tokenizer in it.
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from polybit.bench.shapes import SHAPES
from polybit.bench.subject import Request, SyntheticSubject, open_subject
from polybit.format import exl2, folder
from polybit.format.shards import ShardWriter
from polybit.model.options import LoadOptions
from polybit.model.source import vector_shapes
from polybit.version import __version__

SHARD_BYTES = 8 << 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wish", help="NAME@BITS")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--head-bits", type=int, default=6)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="that makes them")
    given = parser.parse_args()
    name, _, bits = given.wish.rpartition("@")
    if name not in SHAPES:
        raise SystemExit(f"error: unknown shape {name!r}; one of {', '.join(SHAPES)}")
    if given.folder.exists():
        raise SystemExit(f"error: there is something at {given.folder} already; name a folder that does not exist")
    subject = open_subject(Request(None, given.wish, given.head_bits, 0, LoadOptions(device=given.device)))
    assert isinstance(subject, SyntheticSubject)
    given.folder.mkdir(parents=True)
    with ShardWriter(given.folder, SHARD_BYTES) as writer:
        for tensors in parts(subject):
            writer.add({key: tensor.cpu() for key, tensor in tensors.items()})
        writer.finish()
    config = folder.patched_config(dict(SHAPES[name]), float(bits), given.head_bits, {}, __version__)
    folder.write_config(given.folder, config)


def parts(subject: SyntheticSubject) -> Iterator[Mapping[str, Tensor]]:
    model, weights = subject.model, subject.weights
    yield {f"{model.embedding.key}.weight": weights.embedding(model.embedding)}
    for linear in (*model.linears, model.head.linear):
        yield exl2.to_tensors(linear.key, weights.tensor(linear))
    for name in vector_shapes(model):
        if name != f"{model.embedding.key}.weight":
            yield {name: weights.vector(name)}


if __name__ == "__main__":
    main()
