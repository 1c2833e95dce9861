"""Many questions about one text: it is read once, whether they come together or one after another."""

import sys

import polybit

engine = polybit.load(sys.argv[1])
text = "The ship left the harbour at dawn, and nobody on board knew where it was bound. " * 10
questions = ["Where was it bound?", "When did it leave?", "Who knew?"]
answers = engine.generate([f"{text}\nQuestion: {question}\nAnswer:" for question in questions], max_tokens=16)
for question, answer in zip(questions, answers, strict=True):
    print(f"{question} {answer.cached_tokens} of {answer.prompt_tokens} tokens were read before")
