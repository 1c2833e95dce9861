"""The finished EXL2 folder: shards in model order, the source's other files, config.json last."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from polybit import spec
from polybit.format import exl2, folder
from polybit.format.shards import ShardWriter
from polybit.model.source import ModelSource
from polybit.quantizer.job import Job
from polybit.quantizer.stored import attention_norms, embedding_tensors, norm_tensors, router_tensors
from polybit.version import __version__

Tensors = Mapping[str, Tensor]


def tensors_name(key: str) -> str:
    """Where a job keeps the quantized tensors of the linear `key`."""
    return f"tensors/{key}"


def write_model(
    source: ModelSource,
    job: Job,
    target: Path,
    shard_bytes: int,
    bits: float,
    head_bits: int,
    record: Mapping[str, Any],
    tuned: Tensors,
) -> None:
    """Everything of `target`; a reader finds no config.json before all else is there.

    `tuned`: by name, what replaces norms of the source and tensors of quantized matrices.
    """
    with ShardWriter(target, shard_bytes) as writer:
        for tensors in _modules(replace(source, checkpoint=source.checkpoint.holding(tuned)), job, tuned):
            writer.add(tensors)
        writer.finish()
    folder.copy_companions(source.folder, target)
    config = folder.patched_config(source.config, bits, head_bits, record, __version__)
    folder.write_config(target, config)


def _modules(source: ModelSource, job: Job, tuned: Tensors) -> Iterator[Tensors]:
    """Tensors module by module, in the order that EXL2 files have (format 8.1)."""
    model, checkpoint = source.spec, source.checkpoint
    yield embedding_tensors(checkpoint, model.embedding)
    if model.positions is not None:
        yield embedding_tensors(checkpoint, model.positions)
    for block in model.blocks:
        match block:
            case spec.SequentialBlock():
                yield norm_tensors(checkpoint, block.attn_norm) | norm_tensors(checkpoint, block.attn_post_norm)
                yield from _attention(source, job, tuned, block.attn)
                yield norm_tensors(checkpoint, block.mlp_norm) | norm_tensors(checkpoint, block.mlp_post_norm)
            case spec.ParallelBlock():
                yield norm_tensors(checkpoint, block.norm)
                yield from _attention(source, job, tuned, block.attn)
        yield router_tensors(checkpoint, block.mlp)
        yield from _quantized(job, tuned, block.mlp.linears)
    yield norm_tensors(checkpoint, model.norm)
    yield from _quantized(job, tuned, (model.head.linear,))
    for name in sorted(name for name in checkpoint.names() if name.startswith(model.companions)):
        yield {name: checkpoint.tensor(name)}


def _attention(source: ModelSource, job: Job, tuned: Tensors, node: spec.Attention) -> Iterator[Tensors]:
    yield from _quantized(job, tuned, node.linears)
    yield from attention_norms(source.checkpoint, node)


def _quantized(job: Job, tuned: Tensors, linears: tuple[spec.Linear, ...]) -> Iterator[Tensors]:
    for linear in linears:
        kept = job.kept_tensors(tensors_name(linear.key))
        yield kept | {name: tuned[name] for name in kept if name in tuned}


def keep_quantized(job: Job, key: str, tensor: exl2.Exl2Tensor) -> None:
    job.keep_tensors(tensors_name(key), exl2.to_tensors(key, tensor))


def kept_quantized(job: Job, key: str) -> exl2.Exl2Tensor:
    """JobError where it is not there or damaged."""
    tensors = job.kept_tensors(tensors_name(key))
    return exl2.Exl2Tensor(**{name.rpartition(".")[2]: tensor for name, tensor in tensors.items()})
