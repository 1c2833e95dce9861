"""A request made ready: its prompt, parameters and tokenizer become a sequence that the engine can run."""

from collections.abc import Iterable

from polybit.errors import RequestError
from polybit.generator.params import SamplingParams
from polybit.generator.sequence import Sequence
from polybit.text import Tokenizer


def new_sequence(
    prompt: list[int], params: SamplingParams, tokenizer: Tokenizer, vocab_size: int, room: int, shown: Iterable[int]
) -> Sequence:
    """`room`: tokens that the context leaves for the answer. `shown`: tokens whose text the answer goes on from.

    Raises RequestError for parameters that this model cannot serve.
    """
    check_tokens(params, vocab_size)
    ends = set(params.stop_tokens) | (set() if params.ignore_eos else set(tokenizer.eos_ids))
    breakers = tokenizer.piece_index.holding(params.dry_breakers) if params.dry_multiplier > 0 else ()
    detokenizer = tokenizer.detokenizer(params.show_special, after=shown)
    return Sequence(prompt, params, frozenset(ends), detokenizer, room, breakers)


def check_tokens(params: SamplingParams, vocab_size: int) -> None:
    """Raises RequestError for a token that the model does not have."""
    named = {"logit_bias": params.logit_bias, "xtc_spared_tokens": params.xtc_spared_tokens}
    for name, tokens in named.items():
        beyond = next((token for token in tokens if token >= vocab_size), None)
        if beyond is not None:
            raise RequestError(f"{name} names token {beyond}, expected token ids from 0 to {vocab_size - 1}")
