"""Steps made one by one, by a program with its own loop: requests come and go between them."""

import sys

import polybit

engine = polybit.load(sys.argv[1])
streams = [engine.stream("First", max_tokens=12)]
steps = 0
while engine.step():
    steps += 1
    if steps == 5:
        streams.append(engine.stream("Second, which comes later", max_tokens=12))
    for number, stream in enumerate(streams, 1):
        while (piece := stream.ready()) is not None:
            print(f"step {steps}, stream {number}: {piece!r}")
