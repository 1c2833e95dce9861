"""A request made ready: its prompt, parameters and tokenizer become a sequence that the engine can run."""

from collections.abc import Collection, Iterable
from collections.abc import Sequence as Tokens

from polybit.cache import Holding
from polybit.errors import RequestError
from polybit.generator.filters import Filter, OneOf
from polybit.generator.own_code import OwnFilter, Revise, own_revise
from polybit.generator.params import GRAMMARS, SamplingParams
from polybit.generator.sampling import SamplingState
from polybit.generator.sampling.mask import TokenMask, mask_of
from polybit.generator.sequence import Sequence
from polybit.generator.structured import Grammar
from polybit.text import Tokenizer


def new_sequence(
    prompt: list[int],
    params: SamplingParams,
    tokenizer: Tokenizer,
    vocab_size: int,
    room: int,
    shown: Collection[int],
    negative: list[int] | None = None,
    own_filter: Filter | None = None,
    revise: Revise | None = None,
) -> Sequence:
    """`vocab_size`: tokens that may be drawn. `room`: tokens that the context leaves for the answer. `shown`: tokens
    whose text the answer goes on from. `negative`: the prompt that the answer is to be led away from.

    Raises RequestError for parameters that this model cannot serve.
    """
    check_tokens(params, vocab_size)
    if own_filter is not None and (params.is_shaped or params.token_healing):
        raise RequestError(
            "a filter is given beside token_healing or what the answer looks like; leave one of them out"
        )
    detokenizer = tokenizer.detokenizer(params.show_special, after=shown)
    ends = frozenset(params.stop_tokens)
    if params.is_shaped or not params.ignore_eos:
        ends |= frozenset(tokenizer.eos_ids)
    filter_ = (
        OwnFilter(own_filter, vocab_size)
        if own_filter
        else make_filter(params, tokenizer, vocab_size, ends, detokenizer.drops_space)
    )
    first = None
    if params.token_healing and (healed := heal(prompt, tokenizer)):
        negative = negative and _without_last(negative, prompt[-1])
        prompt, first = prompt[:-1], mask_of(tokenizer.piece_index.starting_with(healed), vocab_size)
        detokenizer.skip(len(healed))
    sampling = SamplingState(params, prompt, dry_breakers(params, tokenizer), xtc_spared(params, tokenizer, vocab_size))
    checked = None if revise is None else own_revise(revise, vocab_size)
    sequence = Sequence(prompt, params, ends, detokenizer, room, sampling, filter_, first, checked)
    sequence.companion = None if negative is None else Holding(negative)
    return sequence


def _without_last(negative: list[int], last: int) -> list[int]:
    if negative[-1] != last or len(negative) < 2:
        raise RequestError("token_healing is True, but the negative prompt does not end in the prompt's last token")
    return negative[:-1]


def make_filter(
    params: SamplingParams, tokenizer: Tokenizer, vocab_size: int, ends: frozenset[int], drops_space: bool
) -> Filter | None:
    """For what the answer is to look like, if anything. `drops_space`: its first space would be the tokenizer's own."""
    options = params.choices or params.starts_with
    if options:
        is_open = bool(params.starts_with)
        return OneOf(options, tokenizer.piece_index, vocab_size, ends, is_open, drops_space)
    for name in GRAMMARS:
        source: str | None = getattr(params, name)
        if source is not None:
            return Grammar(source, name, tokenizer, vocab_size, ends)
    return None


def heal(prompt: Tokens[int], tokenizer: Tokenizer) -> bytes | None:
    """What the prompt's last token writes, so that the answer may begin with a token that writes it and more.

    None for a token that writes nothing, and where none would be left.
    """
    if len(prompt) < 2:
        return None
    return tokenizer.piece_index.written.get(prompt[-1])


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
