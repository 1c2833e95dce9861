"""A script written for exllamav2, in an event loop."""

import asyncio
import sys

from exllamav2 import ExLlamaV2, ExLlamaV2Cache, ExLlamaV2Config, ExLlamaV2Tokenizer
from exllamav2.generator import ExLlamaV2DynamicGeneratorAsync, ExLlamaV2DynamicJobAsync

config = ExLlamaV2Config(sys.argv[1])
model = ExLlamaV2(config)
cache = ExLlamaV2Cache(model, max_seq_len=1024, lazy=True)
model.load_autosplit(cache)
tokenizer = ExLlamaV2Tokenizer(config)


async def main() -> None:
    generator = ExLlamaV2DynamicGeneratorAsync(model=model, cache=cache, tokenizer=tokenizer)

    async def tell(name: str) -> None:
        job = ExLlamaV2DynamicJobAsync(generator, tokenizer.encode(f"{name} said"), max_new_tokens=12)
        async for result in job:
            print(name, repr(result.get("text", "")))

    await asyncio.gather(tell("Alice"), tell("Bob"))
    await generator.close()


asyncio.run(main())
