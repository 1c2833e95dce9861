"""exllamav2's generators over `polybit.Engine`."""

from exllamav2.generator.base import ExLlamaV2BaseGenerator
from exllamav2.generator.dynamic import ExLlamaV2DynamicGenerator
from exllamav2.generator.dynamic_async import ExLlamaV2DynamicGeneratorAsync, ExLlamaV2DynamicJobAsync
from exllamav2.generator.filters import ExLlamaV2Filter, ExLlamaV2PrefixFilter, ExLlamaV2SelectFilter
from exllamav2.generator.hooks import ExLlamaV2PostSamplingHook, ExLlamaV2PostSamplingResult
from exllamav2.generator.job import ExLlamaV2DynamicJob
from exllamav2.generator.sampler import ExLlamaV2Sampler
from exllamav2.generator.streaming import ExLlamaV2StreamingGenerator

__all__ = [
    "ExLlamaV2BaseGenerator",
    "ExLlamaV2DynamicGenerator",
    "ExLlamaV2DynamicGeneratorAsync",
    "ExLlamaV2DynamicJob",
    "ExLlamaV2DynamicJobAsync",
    "ExLlamaV2Filter",
    "ExLlamaV2PostSamplingHook",
    "ExLlamaV2PostSamplingResult",
    "ExLlamaV2PrefixFilter",
    "ExLlamaV2Sampler",
    "ExLlamaV2SelectFilter",
    "ExLlamaV2StreamingGenerator",
]
