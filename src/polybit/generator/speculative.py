"""Speculative decoding: guessed tokens go through the model in the step of the token before them, and stay if right.

A guess is right where the model's own sampler draws that token there. A request that is greedy or has a seed draws by
its own random numbers, so its text is token for token what it would be without guesses, whoever makes them, and however
many. One without a seed draws so that a draft's guess comes true as often as it can: see sampling/rejection.py.
"""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

import torch
from torch import Tensor

from polybit.errors import RequestError
from polybit.generator.forward import Forward
from polybit.generator.layout import Run, run_of
from polybit.generator.ngram import continuation
from polybit.generator.sampling import UNUSABLE, Drawn, Guess, SamplingState, propose
from polybit.generator.scheduler import Part, Plan
from polybit.generator.sequence import Sequence


class Outlook:
    """What a sequence may say in one step: its next token, and one after each guess, should that come true.

    `states[i]` is what the token after the first i guesses is sampled with.
    """

    def __init__(self, part: Part[Sequence]) -> None:
        self.sequence = part.sequence
        self.guesses: list[int] = []
        part.guesses = self.guesses
        self.states: list[SamplingState] = [part.sequence.sampling]
        self.tried: list[Guess] = []  # those guesses, and one more where nothing can follow it
        self._part = part

    @property
    def room(self) -> int:
        """Guesses that may still be added."""
        return self._part.room - len(self.guesses)

    def add(self, guess: Guess) -> bool:
        """Guess the next token; whether another may be guessed after it."""
        if guess.token == UNUSABLE:
            return False
        self.tried.append(guess)
        try:
            state = self.sequence.foresee(guess.token, self.states[-1])
        except RequestError:  # of a grammar, which says so again when the token comes, and to this request alone
            state = None
        if state is None:
            return False
        self.guesses.append(guess.token)
        self.states.append(state)
        return True

    def all_tried(self) -> list[Guess | None]:
        """The guess in the place of each state, if there is one."""
        return [*self.tried, *[None] * (len(self.states) - len(self.tried))]

    def last_guess(self) -> Run:
        """For a model that has seen everything before it."""
        return Run(self.guesses[-1:], self._part.stop + len(self.guesses) - 1, self.sequence.pages, num_wanted=1)

    def come_true(self, drawn: list[Drawn]) -> list[Drawn]:
        """Of the tokens drawn in all places, those up to the first that was not guessed, and none that is unusable."""
        right = 0
        while (
            right < len(self.guesses)
            and drawn[right].token == self.guesses[right]
            and drawn[right + 1].token != UNUSABLE  # whose reason is told when it is the first
        ):
            right += 1
        self.sequence.num_guessed += len(self.guesses)
        return drawn[: right + 1]


@contextmanager
def looking_ahead(outlooks: Iterable[Outlook]) -> Iterator[None]:
    """Guesses may be added meanwhile; afterwards the sequences stand where they stood."""
    try:
        yield
    finally:
        for outlook in outlooks:
            with suppress(RequestError):  # as above
                outlook.sequence.look_back()


class Drafter(Protocol):
    """Guesses what sequences say next."""

    @property
    def num_tokens(self) -> int:
        """Guesses for a sequence in a step, at most."""

    @property
    def max_seq_len(self) -> int:
        """Tokens of the longest sequence that it can follow."""

    @property
    def num_rows(self) -> int:
        """Token ids that it knows."""

    def guess(self, plan: Plan[Sequence], ready: list[Outlook]) -> None:
        """Add guesses to those sequences of the plan, before it is carried out, that have room for them."""


class NgramDrafter:
    """Guesses that a text goes on as it did where its last few tokens stood before (A. Saxena, "prompt lookup")."""

    max_seq_len = num_rows = sys.maxsize

    def __init__(self, num_tokens: int, longest: int = 4) -> None:
        """`longest`: last tokens that are compared, at most."""
        self.num_tokens = num_tokens
        self._longest = longest

    def guess(self, plan: Plan[Sequence], ready: list[Outlook]) -> None:
        for outlook in ready:
            text = outlook.sequence.sampling.history.all()
            guesses = continuation(text, outlook.room, self._longest) if outlook.room else []
            for token in guesses:
                if not outlook.add(Guess(token)):
                    break


class ModelDrafter:
    """A smaller model that reads the same texts. Its keys and values lie in the same pages, of a pool of its own.

    So it stores whatever the model that it serves is about to store, and knows nothing of who holds which page.
    """

    def __init__(self, forward: Forward, num_tokens: int, vocab_size: int) -> None:
        """`vocab_size`: ids from here on are no tokens."""
        self.num_tokens = num_tokens
        self.max_seq_len = forward.model.max_seq_len
        self.num_rows = forward.model.spec.embedding.num_rows
        self._forward = forward
        self._vocab_size = vocab_size

    @torch.inference_mode()
    def guess(self, plan: Plan[Sequence], ready: list[Outlook]) -> None:
        if plan.copies:
            self._forward.pool.copy(plan.copies)
        logits = self._forward([run_of(part) for part in plan.parts + plan.beside])
        asked = ready
        while asked:
            rows = [row for row, outlook in enumerate(asked) if outlook.room]
            guesses = self._guesses(logits, rows, [asked[row].states[-1] for row in rows])
            asked = [asked[row] for row, guess in zip(rows, guesses, strict=True) if asked[row].add(guess)]
            if asked:  # the last guesses too, though no further one follows from them: they may come true
                logits = self._forward([outlook.last_guess() for outlook in asked])

    def _guesses(self, logits: Tensor, rows: list[int], states: list[SamplingState]) -> list[Guess]:
        if not rows:
            return []
        return propose(logits[torch.tensor(rows, device=logits.device), : self._vocab_size], states)
