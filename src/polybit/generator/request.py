"""A request made ready: its prompt, parameters and tokenizer become a sequence that the engine can run."""

from collections.abc import Iterable

from polybit.errors import RequestError
from polybit.generator.params import SamplingParams
from polybit.generator.sampling import SamplingState
from polybit.generator.sampling.mask import TokenMask, mask_of
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
    sampling = SamplingState(params, prompt, dry_breakers(params, tokenizer), xtc_spared(params, tokenizer, vocab_size))
    detokenizer = tokenizer.detokenizer(params.show_special, after=shown)
    return Sequence(prompt, params, frozenset(ends), detokenizer, room, sampling)


def dry_breakers(params: SamplingParams, tokenizer: Tokenizer) -> frozenset[int]:
    """Special tokens, those named, and those whose text holds a text named."""
    if params.dry_multiplier == 0:
        return frozenset()
    return tokenizer.piece_index.holding(params.dry_breakers) | frozenset(params.dry_breaker_tokens)


def xtc_spared(params: SamplingParams, tokenizer: Tokenizer, vocab_size: int) -> TokenMask | None:
    """As for DRY's breakers."""
    if params.xtc_probability == 0:
        return None
    spared = tokenizer.piece_index.holding(params.xtc_spared) | frozenset(params.xtc_spared_tokens)
    return mask_of(spared, vocab_size)


def check_tokens(params: SamplingParams, vocab_size: int) -> None:
    """Raises RequestError for a token that the model does not have."""
    for name in ("logit_bias", "dry_breaker_tokens", "xtc_spared_tokens"):
        tokens: Iterable[int] = getattr(params, name)
        beyond = next((token for token in tokens if token >= vocab_size), None)
        if beyond is not None:
            raise RequestError(f"{name} names token {beyond}, expected token ids from 0 to {vocab_size - 1}")
