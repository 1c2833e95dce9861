"""A script written for exllamav2: a dynamic generator, and jobs in its queue."""

import sys

from exllamav2 import ExLlamaV2, ExLlamaV2Cache, ExLlamaV2Config, ExLlamaV2Tokenizer
from exllamav2.generator import ExLlamaV2DynamicGenerator, ExLlamaV2DynamicJob

config = ExLlamaV2Config(sys.argv[1])
model = ExLlamaV2(config)
cache = ExLlamaV2Cache(model, max_seq_len=1024, lazy=True)
model.load_autosplit(cache)
tokenizer = ExLlamaV2Tokenizer(config)
generator = ExLlamaV2DynamicGenerator(model=model, cache=cache, tokenizer=tokenizer)

for name in ("Alice", "Bob", "Carol"):
    generator.enqueue(ExLlamaV2DynamicJob(tokenizer.encode(f"{name} said"), max_new_tokens=12, identifier=name))
while generator.num_remaining_jobs():
    for result in generator.iterate():
        if result["eos"]:
            print(result["identifier"], "said", result["full_completion"])
