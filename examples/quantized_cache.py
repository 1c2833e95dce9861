"""Keys and values in less memory: python examples/quantized_cache.py MODEL"""

import sys

import polybit

for cache in ("fp16", "q8", "q4"):
    engine = polybit.load(sys.argv[1], cache_tokens=2048, cache=cache)
    answer = engine.generate("Once upon a time", max_tokens=24, temperature=0)
    print(f"{cache}: {engine.pool.num_bytes / 2**20:.1f} MiB: {answer.text!r}")
