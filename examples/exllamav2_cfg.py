"""A script written for exllamav2: guidance, by a job with two prompts."""

import sys

from exllamav2 import ExLlamaV2, ExLlamaV2Cache, ExLlamaV2Config, ExLlamaV2Tokenizer
from exllamav2.generator import ExLlamaV2DynamicGenerator, ExLlamaV2DynamicJob, ExLlamaV2Sampler

config = ExLlamaV2Config(sys.argv[1])
model = ExLlamaV2(config)
cache = ExLlamaV2Cache(model, max_seq_len=1024, lazy=True)
model.load_autosplit(cache)
tokenizer = ExLlamaV2Tokenizer(config)
generator = ExLlamaV2DynamicGenerator(model=model, cache=cache, tokenizer=tokenizer)

prompts = ("A cheerful poem about rain:\n", "A sad poem about rain:\n")
for scale in (0.0, 1.0, 2.0):
    job = ExLlamaV2DynamicJob(
        input_ids=[tokenizer.encode(prompt) for prompt in prompts],
        max_new_tokens=16,
        gen_settings=ExLlamaV2Sampler.Settings.greedy(cfg_scale=scale),
        identifier=scale,
    )
    generator.enqueue(job)
while generator.num_remaining_jobs():
    for result in generator.iterate():
        if result["eos"]:
            print("scale", result["identifier"], repr(result["full_completion"]))
