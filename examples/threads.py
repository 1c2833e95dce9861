"""Threads that share an engine, as in a web server: each asks for itself, and all run in the same batch."""

import sys
from concurrent.futures import ThreadPoolExecutor

import polybit

engine = polybit.load(sys.argv[1])


def ask(animal: str) -> str:
    return engine.generate(f"The {animal} says", max_tokens=8, temperature=0).text


animals = ["cat", "dog", "cow", "owl"]
with ThreadPoolExecutor() as threads:
    for animal, text in zip(animals, threads.map(ask, animals), strict=True):
        print(animal, text)
