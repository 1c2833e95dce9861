"""exllamav2's Python interface over polybit, so that scripts written for it run unchanged.

What it cannot honour it refuses by name; it never ignores an argument that would change the result.
"""

from exllamav2.cache import (
    ExLlamaV2Cache,
    ExLlamaV2Cache_8bit,
    ExLlamaV2Cache_Q4,
    ExLlamaV2Cache_Q6,
    ExLlamaV2Cache_Q8,
    ExLlamaV2Cache_TP,
)
from exllamav2.config import ExLlamaV2Config
from exllamav2.model import ExLlamaV2
from exllamav2.timer import Timer
from exllamav2.tokenizer import ExLlamaV2Tokenizer
from exllamav2.unsupported import ExLlamaV2Lora, ExLlamaV2MMEmbedding, ExLlamaV2VisionTower

__all__ = [
    "ExLlamaV2",
    "ExLlamaV2Cache",
    "ExLlamaV2Cache_8bit",
    "ExLlamaV2Cache_Q4",
    "ExLlamaV2Cache_Q6",
    "ExLlamaV2Cache_Q8",
    "ExLlamaV2Cache_TP",
    "ExLlamaV2Config",
    "ExLlamaV2Lora",
    "ExLlamaV2MMEmbedding",
    "ExLlamaV2Tokenizer",
    "ExLlamaV2VisionTower",
    "Timer",
]
