"""A script written for exllamav2: filters that are there, and one of the script's own."""

import sys

from exllamav2 import ExLlamaV2, ExLlamaV2Cache, ExLlamaV2Config, ExLlamaV2Tokenizer
from exllamav2.generator import ExLlamaV2DynamicGenerator
from exllamav2.generator.filters import ExLlamaV2Filter, ExLlamaV2PrefixFilter, ExLlamaV2SelectFilter

config = ExLlamaV2Config(sys.argv[1])
model = ExLlamaV2(config)
cache = ExLlamaV2Cache(model, max_seq_len=1024, lazy=True)
model.load_autosplit(cache)
tokenizer = ExLlamaV2Tokenizer(config)
generator = ExLlamaV2DynamicGenerator(model=model, cache=cache, tokenizer=tokenizer)


class Digits(ExLlamaV2Filter):
    """Four digits."""

    def begin(self, prefix_str):
        self.written = 0

    def feed(self, token):
        self.written += 1

    def next(self):
        digits = {tokenizer.single_id(digit) for digit in "0123456789"}
        return digits, digits if self.written == 3 else set()


prompts = ["A number:", "Is it so?", "Greet me:"]
filters = [
    [Digits(model, tokenizer)],
    [ExLlamaV2SelectFilter(model, tokenizer, ["Yes", "No"])],
    [ExLlamaV2PrefixFilter(model, tokenizer, ["Hello", "Good"])],
]
for text in generator.generate(prompt=prompts, filters=filters, max_new_tokens=12, add_bos=True):
    print(text)
