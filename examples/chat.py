"""A message answered by the model's chat template, then a second one that builds on it."""

import sys

import polybit

engine = polybit.load(sys.argv[1])
messages = [{"role": "user", "content": "Name a colour."}]
for question in ("And another one?", None):
    answer = engine.chat(messages, max_tokens=24)
    print(f"{answer.prompt_tokens} tokens asked, {answer.cached_tokens} of them read before: {answer.text!r}")
    messages += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": question}]
