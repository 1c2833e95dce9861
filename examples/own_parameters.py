"""A list in which each prompt has its own parameters; what one says does not depend on the others."""

import sys

import polybit
from polybit import SamplingParams

engine = polybit.load(sys.argv[1])
careful = SamplingParams(temperature=0, max_tokens=16)
bold = SamplingParams(temperature=1.3, min_p=0.02, seed=7, max_tokens=32)
first, second = engine.generate(["Two and two make", "A strange dream:"], [careful, bold])
print(first.text)
print(second.text)
print("the same alone:", engine.generate("A strange dream:", bold).text == second.text)
