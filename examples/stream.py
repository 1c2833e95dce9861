"""Text as it comes."""

import sys

import polybit

engine = polybit.load(sys.argv[1])
for piece in engine.stream("Once upon a time", max_tokens=48):
    print(piece, end="", flush=True)
print()
