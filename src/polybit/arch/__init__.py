"""config.json -> `spec.Model`: one small file a family, a registry, and a reader that refuses what nobody read."""

from polybit.arch.registry import SUPPORTED, Architecture, read_model
from polybit.arch.rope import with_rope_override
from polybit.arch.unsupported import UNSUPPORTED

__all__ = ["SUPPORTED", "UNSUPPORTED", "Architecture", "read_model", "with_rope_override"]
