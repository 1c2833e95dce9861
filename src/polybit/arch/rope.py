"""config.json -> `spec.Rope`, and overrides of it.

Two spellings exist: `rope_theta` with `rope_scaling`, and `rope_parameters`, which holds both, or one set a layer type.
A table is fixed when a model is loaded: dynamic NTK and LongRoPE choose by that context length, not by each sequence's.
"""

import math
from dataclasses import replace

from typing_extensions import assert_never

from polybit.arch.config import HFConfig
from polybit.errors import ConfigError
from polybit.spec import (
    Attention,
    Block,
    DynamicNtkScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Model,
    Rope,
    RopeScaling,
    Unscaled,
    YarnScaling,
)

LAYER_TYPES = ("full_attention", "sliding_attention")


def read_rope(
    cfg: HFConfig,
    head_dim: int,
    *,
    layer_type: str | None = None,
    theta: float = 10000.0,
    partial: float = 1.0,
    interleaved: bool = False,
) -> Rope:
    """The rotation of `cfg`, or of its layers of `layer_type`; `theta` and `partial` are the family's defaults."""
    given = cfg.optional_child("rope_parameters")
    if given is not None and layer_type is not None and any(name in given for name in LAYER_TYPES):
        given.skip(*LAYER_TYPES)
        given = given.child(layer_type)
    base = (given or cfg).real("rope_theta", default=theta)
    if base <= 1:
        raise (given or cfg).error("rope_theta", base, "a number above 1")
    dim = int(head_dim * _partial(given, cfg, partial))
    if dim % 2 or not 0 < dim <= head_dim:
        raise cfg.error("partial_rotary_factor", dim / head_dim, f"to rotate an even part of {head_dim} features")
    scaling = given or cfg.optional_child("rope_scaling")
    return Rope(base, dim, interleaved, _scaling(cfg, scaling, dim) if scaling else Unscaled())


def _partial(given: HFConfig | None, cfg: HFConfig, default: float) -> float:
    """The share of a head's features that is rotated; some generations of configs keep it beside the other numbers."""
    key = "partial_rotary_factor"
    found = [holder.real(key, default=default) for holder in (given, cfg) if holder is not None and key in holder]
    if len(set(found)) > 1:
        raise cfg.error(key, found[1], f"the same as in rope_parameters, {found[0]}")
    return found[0] if found else default


def _kind(given: HFConfig) -> str:
    """The name of the scaling, which two generations of configs keep under two keys."""
    kinds = {given.text(key, default="default") for key in ("rope_type", "type") if key in given}
    kinds = {{"su": "longrope", "mrope": "default"}.get(kind, kind) for kind in kinds}
    if len(kinds) > 1:
        raise given.error("rope_type", " and ".join(sorted(kinds)), "one kind of scaling in `rope_type` and `type`")
    return kinds.pop() if kinds else "default"


def _scaling(cfg: HFConfig, given: HFConfig, dim: int) -> RopeScaling:
    kind = _kind(given)
    match kind:
        case "default":
            given.skip("mrope_section")  # text has the same position on every axis
            return Unscaled()
        case "linear":
            return LinearScaling(given.real("factor"))
        case "dynamic":
            return DynamicNtkScaling(given.real("factor"), _length(cfg))
        case "llama3":
            low, high = given.real("low_freq_factor"), given.real("high_freq_factor")
            if low == high:
                raise given.error("high_freq_factor", high, "another value than low_freq_factor's")
            return Llama3Scaling(given.real("factor"), low, high, _original_length(cfg, given))
        case "yarn":
            return _yarn(cfg, given)
        case "longrope":
            return _longrope(cfg, given, dim)
        case _:
            raise given.unsupported("rope_type", kind, "linear, dynamic, llama3, yarn, longrope or mrope")


def _yarn(cfg: HFConfig, given: HFConfig) -> YarnScaling:
    original = _original_length(cfg, given)
    factor = given.optional_real("factor") or _extension(cfg, original)
    attention = given.optional_real("attention_factor")
    scale, scale_all = given.optional_real("mscale"), given.optional_real("mscale_all_dim")
    if attention is None and scale and scale_all:
        attention = _yarn_attention(factor, scale) / _yarn_attention(factor, scale_all)
    return YarnScaling(
        factor=factor,
        original_length=original,
        attention_factor=attention or _yarn_attention(factor),
        beta_fast=given.real("beta_fast", default=32.0),
        beta_slow=given.real("beta_slow", default=1.0),
        truncate=given.flag("truncate", default=True),
    )


def _yarn_attention(factor: float, scale: float = 1.0) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _longrope(cfg: HFConfig, given: HFConfig, dim: int) -> LongRopeScaling:
    original = _original_length(cfg, given)
    factors = {key: given.reals(key) or () for key in ("short_factor", "long_factor")}
    for key, values in factors.items():
        if len(values) != dim // 2:
            raise given.error(key, list(values), f"a list of {dim // 2} numbers, one a frequency")
    extension = given.optional_real("factor") or _extension(cfg, original)
    attention = math.sqrt(1 + math.log(extension) / math.log(original)) if extension > 1 and original > 1 else 1.0
    return LongRopeScaling(
        factors["short_factor"], factors["long_factor"], original, given.optional_real("attention_factor") or attention
    )


def _original_length(cfg: HFConfig, given: HFConfig) -> int:
    """Tokens of context that the model was trained on; Phi-3 keeps it beside the scaling, others inside."""
    beside, inside = (place.optional_count("original_max_position_embeddings") for place in (cfg, given))
    return beside or inside or _length(cfg)


def _extension(cfg: HFConfig, original: int) -> float:
    return _length(cfg) / original


def _length(cfg: HFConfig) -> int:
    return cfg.count("max_position_embeddings", "max_seq_len")


# ---- overrides


def with_rope_override(
    model: Model, scale: float | None = None, alpha: float | None = None, yarn: float | None = None
) -> Model:
    """`model` with positions divided by `scale`, or YaRN by `yarn`, instead of its own scaling; theta raised by alpha.

    Where a model mixes windowed and full attention, only its full layers change: no window reaches positions far apart.
    Errors: ConfigError for both `scale` and `yarn`, or a value that is not a finite number above 0.
    """
    if scale and yarn:
        raise ConfigError(f"rope scale {scale} and yarn factor {yarn} exclude each other: give one of them")
    for name, value in (("scale", scale), ("alpha", alpha), ("yarn factor", yarn)):
        if value is not None and not 0 < value <= 1e6:
            raise ConfigError(f"rope {name} is {value}, expected a number above 0 and up to 1e6")
    everywhere = all(block.attn.window for block in model.blocks)

    def changed(attn: Attention) -> Attention:
        if attn.rope is None or (attn.window and not everywhere):
            return attn
        return replace(attn, rope=_overridden(attn.rope, model.max_seq_len, scale, alpha, yarn))

    blocks: tuple[Block, ...] = tuple(replace(block, attn=changed(block.attn)) for block in model.blocks)
    return replace(model, blocks=blocks)


def _overridden(rope: Rope, length: int, scale: float | None, alpha: float | None, yarn: float | None) -> Rope:
    if alpha:
        rope = rope.with_ntk(alpha)
    if scale:
        return replace(rope, scaling=LinearScaling(scale))
    if yarn:
        return replace(rope, scaling=YarnScaling(yarn, _trained_length(rope.scaling, length), _yarn_attention(yarn)))
    return rope


def _trained_length(scaling: RopeScaling, length: int) -> int:
    match scaling:
        case DynamicNtkScaling() | Llama3Scaling() | YarnScaling() | LongRopeScaling():
            return scaling.original_length
        case Unscaled() | LinearScaling():
            return length
        case _:
            assert_never(scaling)
