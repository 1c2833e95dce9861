"""The text part of models that also see. Their other tensors are named as companions, which a conversion copies."""

from dataclasses import fields, is_dataclass, replace
from typing import TypeVar

from polybit.arch import gemma3, llama, mistral, qwen2
from polybit.arch.config import HFConfig
from polybit.spec import Model

T = TypeVar("T")
PREFIX = "language_model."
VISION = ("vision_tower.", "multi_modal_projector.")
# Where the text model lies: first as transformers has written it since its version 4.52, in memory order.
RENAMES = (
    ("^model.language_model.", f"{PREFIX}model."),
    ("^lm_head.", f"{PREFIX}lm_head."),
    ("^model.vision_tower.", "vision_tower."),
    ("^model.multi_modal_projector.", "multi_modal_projector."),
)
QWEN_RENAMES = (("^model.language_model.", "model."), ("^model.visual.", "visual."))
IMAGE_KEYS = (
    "vision_config",
    *("image_token_index", "image_token_id", "video_token_id", "vision_token_id", "vision_start_token_id"),
    *("vision_end_token_id", "boi_token_index", "eoi_token_index", "mm_tokens_per_image", "image_seq_length"),
    *("projector_hidden_act", "multimodal_projector_bias", "spatial_merge_size", "vision_feature_layer"),
    "vision_feature_select_strategy",
)
TEXT_MODELS = {"llama": llama.model, "mistral": mistral.model, "qwen2": qwen2.model}


def below(prefix: str, node: T) -> T:
    """`node` with `prefix` before every tensor name in it."""
    if isinstance(node, tuple):
        return type(node)(below(prefix, part) for part in node)
    if not is_dataclass(node) or isinstance(node, type):
        return node
    values = {field.name: getattr(node, field.name) for field in fields(node)}
    changed = {k: prefix + v if k in ("key", "router_key") else below(prefix, v) for k, v in values.items()}
    return replace(node, **changed)


def _tied(cfg: HFConfig, text: Model, silent: bool) -> Model:
    """The outermost tie_word_embeddings counts."""
    return replace(text, head=replace(text.head, tied=cfg.flag("tie_word_embeddings", default=silent)))


def _prefixed(cfg: HFConfig, text: Model, silent: bool) -> Model:
    cfg.skip(*IMAGE_KEYS)
    return replace(below(PREFIX, _tied(cfg, text, silent)), renames=RENAMES, companions=VISION)


def gemma3_model(cfg: HFConfig) -> Model:
    return _prefixed(cfg, gemma3.model(cfg.child("text_config", gemma3.DEFAULTS)), silent=True)


def llava_model(cfg: HFConfig) -> Model:
    """Llava and Mistral 3; the text model says which it is."""
    text = cfg.child("text_config", {"num_attention_heads": 32})
    kind = text.text("model_type", default="mistral" if cfg.architecture.startswith("Mistral") else "llama")
    if kind not in TEXT_MODELS:
        raise text.unsupported("model_type", kind, "one of " + ", ".join(TEXT_MODELS))
    base = TEXT_MODELS[kind](text)
    return _prefixed(cfg, base, silent=base.head.tied)


def qwen2_vl_model(cfg: HFConfig) -> Model:
    """Qwen2-VL and 2.5-VL, whose published configs have the text model's keys at the top."""
    text = cfg.optional_child("text_config")
    base = qwen2.model(text or cfg)
    cfg.skip(*IMAGE_KEYS)
    if text is not None:
        cfg.skip_copies(text)
    return replace(_tied(cfg, base, silent=base.head.tied), renames=QWEN_RENAMES, companions=("visual.",))
