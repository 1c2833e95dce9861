"""An answer that is given up: its pages are free at the end of the `with` block, and others go on."""

import sys

import polybit

engine = polybit.load(sys.argv[1])
other = engine.stream("Meanwhile", max_tokens=12)
with engine.stream("A very long story:", max_tokens=200) as story:
    for piece in story:
        print(piece, end="")
        if len(story.completion.tokens) >= 5:
            break
print("\nleft after", len(story.completion.tokens), "tokens")
print("the other had all of its", len(other.drain().tokens))
