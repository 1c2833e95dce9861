"""Tokens guessed ahead: python examples/speculative.py MODEL [DRAFT], a smaller model with the same vocabulary."""

import sys

import polybit

folder, draft = sys.argv[1], sys.argv[-1]  # without a draft the model guesses for itself, which shows that all is right
prompt = "Once more: the owl and the cat. Once more: the owl"
plain = polybit.load(folder).generate(prompt, max_tokens=48, seed=1)
for name, options in {"n-grams": {"ngram_draft": True}, "draft model": {"draft": draft}}.items():
    answer = polybit.load(folder, **options).generate(prompt, max_tokens=48, seed=1)
    guesses = answer.accepted_draft_tokens + answer.rejected_draft_tokens
    print(f"{name}: {answer.accepted_draft_tokens} of {guesses} guesses right; same text: {answer.text == plain.text}")
