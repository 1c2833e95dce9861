"""A list in which some prompts cannot be served: their errors stand in their place, the others are answered."""

import sys

import polybit

engine = polybit.load(sys.argv[1])
prompts = ["One, two, three,", "", "far too long " * 100_000]
for answer in engine.generate(prompts, max_tokens=8, return_errors=True):
    print("refused:" if isinstance(answer, polybit.PolybitError) else "answered:", answer)
