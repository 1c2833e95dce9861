"""Who takes part in the next step: a queue, pages and integers. No tensors, no text, no clock.

Every step gives one token to each sequence that has read its prompt, and reads on in the prompts of others. Sequences
come in by the order of their arrival. Where pages run out, the newest leaves and starts over later; what it has stored
can be found again as long as nobody takes its pages. A sequence and its companion come, go and take tokens together.
"""

from bisect import insort
from collections.abc import Iterator
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from polybit.cache import PAGE_TOKENS, Copy, Holding, PageBook
from polybit.cache.holding import WORTH_COPYING
from polybit.cache.pages import Contents, Key

FEWEST_BESIDE = 512  # tokens of prompts beside others: fewer would leave any device idle
LOOK_AHEAD = 8  # first of the queue that may start; those behind them wait unseen

S = TypeVar("S", bound=Holding)
S_co = TypeVar("S_co", bound=Holding, covariant=True)  # of what is only read


@dataclass(frozen=True)
class Limits:
    sequences: int  # that run at once
    prompt_tokens: int  # of a step where nobody waits for a next token
    tokens_beside: int = FEWEST_BESIDE  # of prompts, in a step where someone does
    guesses: int = 0  # that a sequence may try out in a step, behind its last token
    rows: int = 64  # next tokens and guesses of a step, which the guesses share what the sequences leave of


@dataclass(slots=True)
class Part(Generic[S_co]):
    """The next `count` tokens of a sequence that the model has not seen."""

    sequence: S_co
    count: int
    room: int = 0  # guesses after it that pages are held for
    guesses: Tokens[int] = ()  # at most `room`; not tokens of the sequence yet

    @property
    def stop(self) -> int:
        """Length of the sequence once this part is stored."""
        return self.sequence.num_stored + self.count

    @property
    def is_last(self) -> bool:
        """Whether a token follows from it."""
        return self.count == len(self.sequence.tokens) - self.sequence.num_stored


@dataclass(frozen=True)
class Plan(Generic[S_co]):
    """One step: copies first, then the parts, for which pages are held."""

    copies: tuple[Copy, ...]
    parts: tuple[Part[S_co], ...]
    started: tuple[S_co, ...] = ()  # that left the queue for it
    beside: tuple[Part[Holding], ...] = ()  # parts of companions, in the order of those that they go with

    @property
    def is_empty(self) -> bool:
        return not (self.copies or self.parts or self.beside)


@dataclass(eq=False)
class Entry(Generic[S]):
    """A sequence's place in the queue."""

    sequence: S
    number: int  # by arrival
    patience: int | None  # how often later ones may start first; None: always
    num_overtaken: int = 0

    @property
    def is_barrier(self) -> bool:
        return self.patience is not None and self.num_overtaken >= self.patience


@dataclass
class Sketch(Generic[S]):
    """A plan in the making."""

    room: int  # for tokens of prompts
    counts: dict[Holding, int] = field(default_factory=dict)
    copies: dict[Holding, Copy] = field(default_factory=dict)
    started: list[S] = field(default_factory=list)
    reading: dict[Key, list[Contents]] = field(default_factory=dict)  # pages of prompts, by what is before them

    def drop(self, sequence: Holding) -> bool:
        """It has no part in the step after all; whether something was to be copied for it."""
        copies = [self.copies.pop(member, None) for member in sequence.members]
        for member in sequence.members:
            self.counts.pop(member, None)
        return any(copies)

    def read(self, sequence: Holding, count: int) -> None:
        """Remember which pages are being filled with a prompt."""
        start, stop = sequence.num_stored, sequence.num_stored + count
        for index in range(start // PAGE_TOKENS, -(-stop // PAGE_TOKENS)):
            contents = _contents(sequence, index, stop)
            self.reading.setdefault(contents.before, []).append(contents)

    def reads_the_same(self, sequence: Holding) -> bool:
        """Whether another sequence computes in this step what this one could share or copy in the next."""
        index, inside = divmod(sequence.num_stored, PAGE_TOKENS)
        beside = () if inside else self.reading.get(sequence.key(index), ())
        if not beside:
            return False
        own = _contents(sequence, index, len(sequence.tokens) - 1).tokens
        return any(contents.common(own) >= WORTH_COPYING for contents in beside)


class Scheduler(Generic[S]):
    """`add` sequences, then `plan` a step, have it done, tell it by `stored`, and so on; `remove` at any time between.

    Whoever comes in must fit into the pool alone. `running` ones hold pages, `waiting` ones do not.
    """

    def __init__(self, book: PageBook, limits: Limits) -> None:
        self.book = book
        self.limits = limits
        self._running: list[Entry[S]] = []  # both by number
        self._waiting: list[Entry[S]] = []
        self._entries: dict[S, Entry[S]] = {}
        self._num_arrived = 0
        self._steady: Plan[S] | None = None  # the last plan, where it may serve again

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[S]:
        """By arrival."""
        return iter(list(self._entries))

    def add(self, sequence: S, patience: int | None = 4) -> None:
        """`patience`: how many later ones may start before it where they fit and it does not; None: any number."""
        entry = Entry(sequence, self._num_arrived, patience)
        self._num_arrived += 1
        self._entries[sequence] = entry
        self._waiting.append(entry)

    def remove(self, sequence: S, is_sound: bool = True) -> None:
        """It has ended, by itself or not; nothing where it was removed before. `is_sound`: others may use its pages."""
        entry = self._entries.pop(sequence, None)
        if entry is None:
            return
        self._steady = None
        (self._running if entry in self._running else self._waiting).remove(entry)
        self._give_back(sequence, is_sound)

    def interrupted(self, plan: Plan[S] | None) -> None:
        """The plan (None: its making) was cut off somewhere; what it may have stored is stored once more."""
        self._steady = None
        if plan is None or plan.copies:
            while self._running:
                self._send_away(is_sound=False)
            return
        for part in plan.parts + plan.beside:
            if part.sequence.num_pending == 0:
                part.sequence.num_stored -= 1

    def stored(self, plan: Plan[S]) -> None:
        """The plan was carried out, and the tokens that follow are in."""
        for part in plan.parts + plan.beside:
            is_within_page = part.count == 1 and part.room == 0 and part.sequence.num_stored % PAGE_TOKENS
            if not is_within_page and part.sequence.pages:
                part.sequence.mend(self.book)
                _publish(part, self.book)

    # ---- the next step

    def plan(self) -> Plan[S]:
        """Empty only where nobody is there, or where the pool's pages are held by others than these sequences.

        The same object again where all that the step before was for go on by one token, in pages that they have.
        """
        plan = self._steady
        if plan is None or self._may_admit or not all(part.sequence.takes_one for part in plan.parts):  # seldom
            plan = self._sketched()
            self._steady = plan if self._is_steady(plan) else None
        if self.limits.guesses:
            self._give_rooms(plan)
        return plan

    def _is_steady(self, plan: Plan[S]) -> bool:
        """Whether it is of a next token for everyone, and of nothing else."""
        is_alone = not (plan.copies or plan.started or plan.beside)
        return (
            is_alone
            and len(plan.parts) == len(self._running)
            and all(part.count == 1 and part.is_last for part in plan.parts)
        )

    def _sketched(self) -> Plan[S]:
        sketch = self._begin()
        turn = 0
        while turn < len(self._running):  # which may lose its last ones meanwhile
            self._sketch_part(self._running[turn], sketch)
            turn += 1
        while sketch.room > 0 and (entry := self._next_to_start()) is not None:
            self._waiting.remove(entry)
            insort(self._running, entry, key=_number)
            sketch.started.append(entry.sequence)
            self._sketch_part(entry, sketch)
        sequences = [entry.sequence for entry in self._running]
        parts = tuple(Part(sequence, sketch.counts[sequence]) for sequence in sequences if sequence in sketch.counts)
        companions = [sequence.companion for sequence in sequences if sequence.companion is not None]
        beside = tuple(
            Part(companion, sketch.counts[companion]) for companion in companions if companion in sketch.counts
        )
        return Plan(tuple(sketch.copies.values()), parts, tuple(sketch.started), beside)

    def _begin(self) -> Sketch[S]:
        decodes = any(entry.sequence.num_pending == 1 for entry in self._running)
        return Sketch(self.limits.tokens_beside if decodes else self.limits.prompt_tokens)

    def _sketch_part(self, entry: Entry[S], sketch: Sketch[S]) -> None:
        sequence = entry.sequence
        if sequence.takes_one:  # nearly always, and this is done for all at every step
            sketch.counts[sequence] = 1
            return
        if sequence.companion is None:
            self._sketch_member(entry, sequence, sketch)
            return
        for member in sequence.members:
            member.mend(self.book)
        reading = [member for member in sequence.members if member.num_pending > 1]
        for member in reading or sequence.members:  # all take their last token in one and the same step
            if not self._sketch_member(entry, member, sketch, num_kept=1 if reading else 0):
                return

    def _sketch_member(self, entry: Entry[S], sequence: Holding, sketch: Sketch[S], num_kept: int = 0) -> bool:
        """`num_kept`: last tokens that are not for this step. Returns whether the entry could stay."""
        count = 1
        sequence.mend(self.book)
        if sequence.num_pending > 1:
            if sketch.reads_the_same(sequence):
                return True
            if (copy := sequence.reuse(self.book)) is not None:
                sketch.copies[sequence] = copy
            count = min(_chunk(sequence, sketch.room), sequence.num_pending - num_kept)
        if count == 0:
            return True
        if not self._make_room(entry, sequence, sequence.num_stored + count, sketch):
            return False
        if sequence.num_pending > 1:
            sketch.room -= count
            sketch.read(sequence, count)
        sequence.extend(self.book, sequence.num_stored + count)
        sketch.counts[sequence] = count
        return True

    def _give_rooms(self, plan: Plan[S]) -> None:
        share = min(self.limits.guesses, self.limits.rows // max(1, len(plan.parts) + len(plan.beside)) - 1)
        if share > 0:
            for part in plan.parts:
                self._give_room(part, share)

    def _give_room(self, part: Part[S], share: int) -> None:
        """For up to `share` guesses, where nobody has to leave for them."""
        sequence, length = part.sequence, len(part.sequence.tokens)
        if sequence.num_pending != 1:
            return
        part.room = min(share, sequence.num_guessable)
        if sequence.num_missing(length + part.room) > self.book.num_free:
            part.room = PAGE_TOKENS * len(sequence.pages) - length
        sequence.extend(self.book, length + part.room)

    def _make_room(self, entry: Entry[S], sequence: Holding, length: int, sketch: Sketch[S]) -> bool:
        """Send the newest away until `length` tokens of one of the entry's members have room; whether it could stay."""
        while sequence.num_missing(length) > self.book.num_free:
            newest = self._running[-1]
            self._send_away(is_sound=not sketch.drop(newest.sequence))  # else its last page holds nothing yet
            if newest is entry:
                return False
        return True

    def _send_away(self, is_sound: bool) -> None:
        """The newest starts over, when its turn comes again."""
        newest = self._running.pop()
        self._give_back(newest.sequence, is_sound)
        insort(self._waiting, newest, key=_number)

    # ---- the queue

    @property
    def _may_admit(self) -> bool:
        """Whether someone waits, and no limit is in the way."""
        return bool(self._waiting) and len(self._running) < self.limits.sequences

    def _next_to_start(self) -> Entry[S] | None:
        """The first that fits, where those before it let it pass."""
        if not self._may_admit:
            return None
        promised = sum(entry.sequence.num_lacking for entry in self._running)
        for i, entry in enumerate(self._waiting[:LOOK_AHEAD]):
            if self._fits(entry.sequence, promised):
                for passed in self._waiting[:i]:
                    passed.num_overtaken += 1
                return entry
            if entry.is_barrier:
                break
        return None

    def _fits(self, sequence: Holding, promised: int) -> bool:
        found = [page for member in sequence.members for page in member.findable(self.book)]
        left = self.book.num_free - promised - sum(map(self.book.is_free, found))
        return sequence.num_lacking - len(found) <= left

    def _give_back(self, sequence: Holding, is_sound: bool) -> None:
        for member in sequence.members:
            if is_sound:
                member.release(self.book)
            else:
                member.discard(self.book)


def _number(entry: Entry[S]) -> int:
    return entry.number


def _chunk(sequence: Holding, room: int) -> int:
    """How many tokens to read on: up to the prompt's end, or to that of a page."""
    if sequence.num_pending <= max(room, 1):
        return sequence.num_pending
    stop = sequence.num_stored + room
    at_page = stop - stop % PAGE_TOKENS
    return at_page - sequence.num_stored if at_page > sequence.num_stored else room


def _contents(sequence: Holding, index: int, stop: int) -> Contents:
    """What the sequence has in a page once its first `stop` tokens are stored."""
    start = index * PAGE_TOKENS
    return Contents.of(sequence.key(index), sequence.tokens[start : min(start + PAGE_TOKENS, stop)])


def _publish(part: Part[S], book: PageBook) -> None:
    """Ends of prompts are what the next prompt most likely shares."""
    if part.count > 1 and part.sequence.num_pending <= 1:
        part.sequence.publish_all(book)
    else:
        part.sequence.publish(book)
