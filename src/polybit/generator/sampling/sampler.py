"""One token for each row of a batch. Rows that want the same samplers go through them together.

Axes: S sequences, V vocabulary. The host reads nothing back but what somebody asked for, so that the next step can
begin before this one's tokens are known.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from polybit.errors import KernelError, PolybitError, RequestError
from polybit.generator.sampling.mask import is_member
from polybit.generator.sampling.randomness import GUESS, PICK, TRY, uniforms
from polybit.generator.sampling.rejection import Guess, with_guesses
from polybit.generator.sampling.report import Drawn, Ranked, Report
from polybit.generator.sampling.state import SamplingState
from polybit.generator.sampling.steps import MIROSTAT, TOP_K
from polybit.generator.sampling.truncation import likeliest_k

UNUSABLE = -1  # in place of a token, where no logit is a finite number
States = Sequence[SamplingState]
Guesses = Sequence[Guess | None]


@dataclass(frozen=True)
class Sampled:
    """tokens [S] int64, where the logits are; UNUSABLE says that `unusable` knows why. Reports by row."""

    tokens: Tensor
    reports: dict[int, Report] = field(default_factory=dict)

    def drawn(self) -> list[Drawn]:
        """Waits for the device."""
        tokens: list[int] = self.tokens.tolist()
        if not self.reports:
            return list(map(Drawn, tokens))
        return [Drawn(token, self.reports.get(row)) for row, token in enumerate(tokens)]


def sample(logits: Tensor, states: States, guesses: Guesses = ()) -> Sampled:
    """logits [S, V] fp32 of the model, and the state of each row. Changes neither.

    `guesses`: for each row the one that is tried out, or None; (): there are none.
    """
    open_logits = masked(logits, states)
    groups = _groups(states)
    if len(groups) == 1:
        return _sample_group(logits, open_logits, states, guesses)
    tokens = torch.empty(len(states), dtype=torch.int64, device=logits.device)
    reports: dict[int, Report] = {}
    for rows in groups:
        at = torch.tensor(rows, device=logits.device)
        tried = [guesses[row] for row in rows] if guesses else ()
        part = _sample_group(logits[at], open_logits[at], [states[row] for row in rows], tried)
        tokens[at] = part.tokens
        reports |= {rows[i]: report for i, report in part.reports.items()}
    return Sampled(tokens, reports)


def propose(logits: Tensor, states: States) -> list[Guess]:
    """Guesses from another model's logits [S, V], by the rows' own samplers.

    A row with a seed has the very number that its token will be drawn by, which makes the two agree more often (Daliri
    et al., arXiv 2408.07978); one without has another, and tells what it drew from.
    """
    free = [row for row, state in enumerate(states) if state.is_free]
    bound = [row for row, state in enumerate(states) if not state.is_free]
    guesses: dict[int, Guess] = {}
    if bound:
        tokens = sample(logits[bound], [states[row] for row in bound]).tokens.tolist()
        guesses |= {row: Guess(token) for row, token in zip(bound, tokens, strict=True)}
    if free:
        probs = distributions(logits[free], [states[row] for row in free])
        numbers = _guess_uniforms([states[row] for row in free], GUESS)
        tokens = draw(probs.log(), numbers.to(logits.device)).tolist()
        guesses |= {row: Guess(token, probs[i]) for i, (row, token) in enumerate(zip(free, tokens, strict=True))}
    return [guesses[row] for row in range(len(states))]


def distributions(logits: Tensor, states: States) -> Tensor:
    """The probabilities [S, V] that `sample` would draw from. Rows without a finite logit are NaN."""
    probs = torch.empty_like(logits)
    open_logits = masked(logits, states)
    for rows in _groups(states):
        at = torch.tensor(rows, device=logits.device)
        left = _through_steps(open_logits[at], [states[row] for row in rows])
        probs[at] = _final(left.whole(left.logits), states[rows[0]]).softmax(-1)
    return probs


def unusable(logits: Tensor, num_tokens: int) -> PolybitError:
    """Why no token was drawn from a row's logits [V], `num_tokens` into its text."""
    if bool(logits.amax().isfinite()):
        return RequestError(
            f"no token is left to go on with after {num_tokens} tokens: filters, banned texts and logit_bias exclude "
            "each other; leave one of them out"
        )
    count = int(logits.isnan().sum())
    found = f"NaN in {count} of {len(logits)} logits" if count else f"a largest logit of {logits.amax():g}"
    return KernelError(
        f"the model gave {found} after {num_tokens} tokens, expected finite numbers; "
        "the weights are damaged or overflow: check the files, or load with dtype='float32'"
    )


def masked(logits: Tensor, states: States) -> Tensor:
    """Without the tokens that each row may not say now."""
    by_row = {row: state.allowed for row, state in enumerate(states) if state.allowed is not None}
    if by_row:
        masks = torch.from_numpy(np.stack(list(by_row.values()))).to(logits.device)
        allowed = torch.ones_like(logits, dtype=torch.bool)
        allowed[torch.tensor(list(by_row), device=logits.device)] = is_member(masks, logits.shape[-1])
        logits = logits.masked_fill(~allowed, -math.inf)
    places = [(row, token) for row, state in enumerate(states) for token in state.blocked]
    if places:
        at = torch.tensor(places, device=logits.device).T
        logits = logits.index_put((at[0], at[1]), torch.tensor(-math.inf, device=logits.device))
    return logits


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Invert the cumulative distribution of softmax(logits) at `uniforms` [S] of [0, 1): [S]. Never a dropped token."""
    probs = logits.softmax(-1)
    reached = torch.where(probs > 0, probs.cumsum(-1), 0)
    total = reached.amax(-1)
    tokens = (reached > (uniforms * total)[:, None]).int().argmax(-1)
    return torch.where(total > 0, tokens, UNUSABLE)


def likeliest(logits: Tensor) -> Tensor:
    """The token of the largest logit, the first of equals: [S]."""
    largest, tokens = logits.max(-1)
    return torch.where(largest.abs() < math.inf, tokens, UNUSABLE)  # fewer launches than isfinite


def _groups(states: States) -> list[list[int]]:
    """Rows that go through the same steps."""
    kinds = [state.kind for state in states]
    if kinds.count(kinds[0]) == len(kinds):  # nearly always
        return [list(range(len(kinds)))]
    groups: dict[str, list[int]] = {}
    for row, kind in enumerate(kinds):
        groups.setdefault(kind, []).append(row)
    return list(groups.values())


def _sample_group(raw: Tensor, logits: Tensor, states: States, guesses: Guesses) -> Sampled:
    left = _through_steps(logits, states)
    tokens = likeliest(left.logits) if states[0].is_greedy else _drawn(left, states, guesses)
    rows = [row for row, s in enumerate(states) if s.is_reported]
    if not rows:
        return Sampled(tokens)
    at = torch.tensor(rows, device=logits.device)
    seen = [states[row] for row in rows]
    final, before_mirostat = (left.whole(logits)[at] for logits in (left.logits, left.before_mirostat))
    reports = _reports(tokens[at], raw[at], _final(final, seen[0]), before_mirostat, seen)
    return Sampled(tokens, {row: report for row, report in zip(rows, reports, strict=True) if report is not None})


@dataclass(frozen=True)
class Left:
    """What is left of a group's logits after all steps: C columns, which are all tokens or `candidates`."""

    logits: Tensor  # [S, C]
    before_mirostat: Tensor  # [S, C], as mirostat got them, else as the last step did
    uniforms: Tensor  # [S], to draw by
    vocab_size: int
    candidates: Tensor | None = None  # [S, C], tokens in the order of their ids; None: column i is token i

    def tokens_at(self, columns: Tensor) -> Tensor:
        """The tokens of columns [S]; UNUSABLE stays what it is."""
        if self.candidates is None:
            return columns
        tokens = self.candidates.gather(1, columns.clamp_min(0)[:, None])[:, 0]
        return torch.where(columns == UNUSABLE, UNUSABLE, tokens)

    def whole(self, logits: Tensor) -> Tensor:
        """logits [S, C] -> [S, V]."""
        if self.candidates is None:
            return logits
        nothing = logits.new_full((len(logits), self.vocab_size), -math.inf)
        return nothing.scatter(1, self.candidates, logits)


def _drawn(left: Left, states: States, guesses: Guesses) -> Tensor:
    """Tokens [S]; guesses that tell what they were drawn from come true as often as they can."""
    tokens = left.tokens_at(draw(left.logits, left.uniforms))
    tried = {row: guess for row, guess in enumerate(guesses) if guess is not None and guess.probs is not None}
    if tried:
        at = torch.tensor(list(tried), device=tokens.device)
        numbers = _guess_uniforms([states[row] for row in tried], TRY).to(tokens.device)
        logits = with_guesses(left.whole(left.logits)[at], list(tried.values()), numbers)
        tokens[at] = draw(logits, left.uniforms[at])
    return tokens


def _guess_uniforms(states: States, purpose: int) -> Tensor:
    return torch.from_numpy(uniforms([state.guess_key for state in states], [state.count(purpose) for state in states]))


def _through_steps(logits: Tensor, states: States) -> Left:
    steps, is_greedy, vocab_size = states[0].steps, states[0].is_greedy, logits.shape[-1]
    if is_greedy and not steps:
        return Left(logits, logits, logits.new_zeros(len(states)), vocab_size)
    numbers = np.zeros((len(states), len(states[0].constants) + 1), np.float32)
    numbers[:, :-1] = [state.constants for state in states]
    if not is_greedy:
        numbers[:, -1] = uniforms([state.key for state in states], [state.count(PICK) for state in states])
    values = torch.from_numpy(numbers).T.to(logits.device)
    before_mirostat, first, candidates = logits, 0, None
    for step in steps:
        before_mirostat = logits if step is MIROSTAT else before_mirostat
        parameters = values[first : first + len(step.fields)]
        if step is TOP_K and (found := likeliest_k(logits, parameters[0], states[0].num_candidates)) is not None:
            logits, candidates = found
            before_mirostat = logits
        else:
            logits = step.apply(logits, parameters, states)
        first += len(step.fields)
    return Left(logits, before_mirostat, values[-1], vocab_size, candidates)


def _final(logits: Tensor, state: SamplingState) -> Tensor:
    """Logits of the distribution that is drawn from: where the likeliest token is taken, of that alone."""
    if not state.is_greedy:
        return logits
    return torch.full_like(logits, -math.inf).scatter(1, logits.argmax(-1, keepdim=True), 0)


def _reports(
    tokens: Tensor, raw: Tensor, final: Tensor, before_mirostat: Tensor, states: States
) -> list[Report | None]:
    """Of rows that want one, from logits as the model gave them, as they were drawn from, and as mirostat got them."""
    model, drawn = raw.log_softmax(-1), final.log_softmax(-1)
    bits = before_mirostat.log_softmax(-1) / -math.log(2)
    at = tokens.clamp_min(0)[:, None]
    model_logprobs, logprobs, surprises = (x.gather(1, at)[:, 0].tolist() for x in (model, drawn, bits))
    model_likeliest, likeliest_drawn = (_ranked(x, states) for x in (model, drawn))
    return [
        None
        if token == UNUSABLE
        else Report(
            model_logprob=model_logprobs[i],
            logprob=logprobs[i],
            model_likeliest=model_likeliest[i],
            likeliest=likeliest_drawn[i],
            surprise=surprises[i] if states[i].params.mirostat_tau > 0 else None,
            logits=raw[i].to("cpu", copy=True) if states[i].params.return_logits else None,
        )
        for i, token in enumerate(tokens.tolist())
    ]


def _ranked(logprobs: Tensor, states: States) -> list[Ranked]:
    """As many as each row asked for, but none of probability 0."""
    counts = [min(state.params.logprobs or 0, logprobs.shape[-1]) for state in states]
    values, tokens = (x.tolist() for x in logprobs.topk(max(counts)))
    return [
        tuple((t, v) for t, v in zip(tokens[i][:count], values[i], strict=False) if v > -math.inf)
        for i, count in enumerate(counts)
    ]
