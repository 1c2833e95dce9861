"""Texts that are never written: where one comes, its tokens are taken back and others are drawn."""

import sys

import polybit

engine = polybit.load(sys.argv[1])
prompt = "Once upon a time"
free = engine.generate(prompt, max_tokens=24, temperature=0)
banned = free.text[4:8]
answer = engine.generate(prompt, max_tokens=24, temperature=0, banned_strings=[banned])
print(f"without {banned!r}: {answer.text!r}")
print("taken back:", answer.suppressed)
