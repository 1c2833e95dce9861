"""What is told of each token: its probability by the model, and in the distribution that it was drawn from."""

import math
import sys

import polybit

engine = polybit.load(sys.argv[1])
answer = engine.generate("The sky is", max_tokens=6, logprobs=3, seed=1)
for token, report in zip(answer.tokens, answer.logprobs, strict=True):
    likeliest = [(engine.tokenizer.decode([other]), f"{math.exp(logprob):.0%}") for other, logprob in report.likeliest]
    piece = engine.tokenizer.decode([token])
    print(f"{piece!r}: {math.exp(report.model_logprob):.1%}, drawn at {math.exp(report.logprob):.1%} from {likeliest}")
