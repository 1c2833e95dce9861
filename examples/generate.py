"""One prompt, one answer."""

import sys

import polybit

engine = polybit.load(sys.argv[1])
answer = engine.generate("Once upon a time", max_tokens=48, min_p=0.05, seed=1)
print(answer.text)
print(f"{len(answer.tokens)} tokens, {answer.decode_rate:.1f} a second; ended by: {answer.finish_reason}")
