"""A list of prompts in one call: they run together, and a bar shows how many are answered."""

import sys

import polybit

engine = polybit.load(sys.argv[1])
prompts = [f"The square of {number} is" for number in range(40)]
with polybit.progress_bar("answers") as tell:
    answers = engine.generate(prompts, max_tokens=8, temperature=0, progress=tell)
for prompt, answer in zip(prompts, answers, strict=True):
    print(prompt + answer.text)
