"""A filter of one's own: says before each token which may come, here words of at most four letters."""

import sys

import polybit
from polybit.generator.sampling.mask import mask_of

engine = polybit.load(sys.argv[1])
pieces = engine.tokenizer.piece_index.written  # token ids and the bytes that they write
MOST = 4


class ShortWords:
    is_done = False  # whether the text is complete

    def __init__(self):
        self.lengths = [0]  # of the word at the end, before each token and after the last

    def allowed(self):
        left = MOST - self.lengths[-1]
        fitting = [
            token for token, piece in pieces.items() if piece == b" " or (piece.isalpha() and len(piece) <= left)
        ]
        return mask_of(fitting, engine.vocab_size)

    def accept(self, token):
        piece = pieces[token]
        self.lengths.append(0 if piece == b" " else self.lengths[-1] + len(piece))

    def rewind(self, num_tokens):
        del self.lengths[len(self.lengths) - num_tokens :]


answer = engine.stream("Say something:", own_filter=ShortWords(), max_tokens=24, min_p=0).drain()
print("short words:", answer.text)
