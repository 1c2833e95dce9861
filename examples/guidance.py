"""An answer that is led away from what a negative prompt would bring."""

import sys

import polybit

engine = polybit.load(sys.argv[1])
prompt, negative = "A cheerful poem about rain:\n", "A sad poem about rain:\n"
for scale in (1.0, 1.5, 3.0):
    answer = engine.generate(prompt, cfg_scale=scale, negative_prompt=negative, max_tokens=24, temperature=0)
    print(f"scale {scale}: {answer.text!r}")
