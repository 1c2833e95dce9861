"""A model folder, opened and checked but not loaded: its raw config, its spec, and its tensors by name."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from polybit import arch, spec
from polybit.errors import ConfigError, FormatError
from polybit.format.checkpoint import FLOATS, Checkpoint
from polybit.format.hub import local_folder
from polybit.model.options import LoadOptions
from polybit.text.json_object import read_object

log = logging.getLogger(__name__)

Shape = tuple[int, ...]

DERIVED_TENSORS = (".inv_freq", ".masked_bias", ".attn.bias")  # tables that old checkpoints hold and nobody needs


@dataclass(frozen=True)
class ModelSource:
    folder: Path
    config: dict[str, Any]  # config.json as it is
    spec: spec.Model  # with the options' rope overrides and max_seq_len
    checkpoint: Checkpoint
    options: LoadOptions


def open_model(folder: Path | str, options: LoadOptions | None = None) -> ModelSource:
    """Read the folder's description, and find every tensor that it names. `folder` may be a model's id on the Hub.

    Raises ConfigError, UnsupportedModel or FormatError, each naming the file and what to do.
    """
    options = options or LoadOptions()
    folder = local_folder(folder)
    config = read_config(folder)
    model = with_options(arch.read_model(config, where=str(folder / "config.json")), options)
    checkpoint = Checkpoint.open(folder, model.renames)
    check_complete(model, checkpoint)
    _check_vectors(model, checkpoint)
    _tell_unread(model, checkpoint)
    return ModelSource(folder, config, model, checkpoint, options)


def read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder; give the folder that holds a model's config.json")
    config = read_object(folder / "config.json")
    if config is None:
        raise ConfigError(f"{folder} holds no config.json; give the folder of a Hugging Face or EXL2 model")
    return config


def with_options(model: spec.Model, options: LoadOptions) -> spec.Model:
    """The model as it is to be loaded: its rope overridden, its length changed. Raises ConfigError."""
    stretch = (options.rope_scale, options.rope_alpha, options.rope_yarn)
    model = arch.with_rope_override(model, *stretch)
    if options.max_seq_len is None:
        return model
    _check_length(model, options.max_seq_len, stretched=any(stretch))
    return replace(model, max_seq_len=options.max_seq_len)


def _check_length(model: spec.Model, length: int, stretched: bool) -> None:
    """Whether `model` can be asked to reach `length` tokens; says so where it was not made for as many."""
    if length < 1:
        raise ConfigError(f"max_seq_len is {length}, expected at least 1")
    if model.positions is not None and length > model.positions.num_rows:
        raise ConfigError(
            f"max_seq_len is {length}, but {model.architecture} has {model.positions.num_rows} learned positions; "
            "ask for no more"
        )
    if length > model.max_seq_len and not stretched:
        log.warning("max_seq_len %d is more than the %d that %s is made for: answers get worse beyond them, unless "
                    "rope_scale, rope_alpha or rope_yarn stretch its positions",
                    length, model.max_seq_len, model.architecture)  # fmt: skip


def check_complete(model: spec.Model, checkpoint: Checkpoint) -> None:
    """Every tensor that the spec names must be there, before anything is loaded."""
    missing = [name for name in vector_names(model) if name not in checkpoint]
    linears = (*model.linears, *(() if head_is_tied(model, checkpoint) else (model.head.linear,)))
    missing += [f"{linear.key}.weight" for linear in linears if not _has_matrix(linear, checkpoint)]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FormatError(
            f"{checkpoint.folder}: tensor {missing[0]}{more} not found, but {model.architecture} needs it; "
            "a *.safetensors file is missing or from another model, fetch the folder again"
        )


def _check_vectors(model: spec.Model, checkpoint: Checkpoint) -> None:
    """A norm of another length would be broadcast without a word; matrices are checked as they are read."""
    for name, shapes in vector_shapes(model).items():
        same_rank = [shape for shape in shapes if len(shape) == len(checkpoint.shape(name))]
        checkpoint.check(name, FLOATS, (same_rank or shapes)[0])


def _tell_unread(model: spec.Model, checkpoint: Checkpoint) -> None:
    """Say which tensors of the folder the text model has no use for; a damaged description shows here."""
    keys = {key for linear in (*model.linears, model.head.linear) for key in _keys_of(linear)}
    names = set(vector_names(model))
    unread = sorted(
        name
        for name in checkpoint.names() - names
        if name.rpartition(".")[0] not in keys
        and not name.endswith(DERIVED_TENSORS)
        and not name.startswith(model.companions)
    )
    if unread:
        log.warning("%s: %d tensors are not part of the text model and stay unread (the first is %s)",
                    checkpoint.folder, len(unread), unread[0])  # fmt: skip


def _keys_of(linear: spec.Linear) -> tuple[str, ...]:
    return (linear.key,) if linear.source is None else (linear.key, linear.source.key)


def head_is_tied(model: spec.Model, checkpoint: Checkpoint) -> bool:
    """Whether the head is the embedding's matrix here: a head of its own is preferred wherever there is one."""
    return model.head.tied and checkpoint.kind(model.head.linear.key) is None


def _has_matrix(linear: spec.Linear, checkpoint: Checkpoint) -> bool:
    if checkpoint.kind(linear.key) is not None:
        return True
    return linear.source is not None and f"{linear.source.key}.weight" in checkpoint


def vector_names(model: spec.Model) -> list[str]:
    """Names of everything unquantized that is not a linear: embeddings, norms, routers."""
    return list(vector_shapes(model))


def vector_shapes(model: spec.Model) -> dict[str, list[Shape]]:
    """The same names, each with the shapes that it may have: EXL2 files repeat a head norm for every head."""
    shapes: dict[str, list[Shape]] = {}
    for embedding in (model.embedding, model.positions):
        if embedding is not None:
            shapes[f"{embedding.key}.weight"] = [(embedding.num_rows, embedding.width)]
    for block in model.blocks:
        heads = {block.attn.q_norm: block.attn.num_heads, block.attn.k_norm: block.attn.num_kv_heads}
        for norm in spec.block_norms(block):
            repeated = norm in heads and norm.width == block.attn.head_dim
            shapes |= _norm_shapes(norm, [(heads[norm], norm.width)] if repeated else [])
        if isinstance(block.mlp, spec.SparseMoe):
            shapes[f"{block.mlp.router_key}.weight"] = [(len(block.mlp.experts), model.hidden_size)]
    return shapes | _norm_shapes(model.norm, [])


def _norm_shapes(norm: spec.Norm, others: list[Shape]) -> dict[str, list[Shape]]:
    parts = ("weight", "bias") if isinstance(norm, spec.LayerNorm) and norm.bias else ("weight",)
    return {f"{norm.key}.{part}": [(norm.width,), *others] for part in parts}
