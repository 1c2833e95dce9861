"""Who takes part in which step, over a stub of a model that notes what each page holds."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polybit.cache import PAGE_TOKENS, Holding, PageBook, pages_for
from polybit.generator.scheduler import Limits, Scheduler

ROOMY = Limits(64, prompt_tokens=2048)


class Guessable(Holding):
    MOST = 5

    @property
    def num_guessable(self):
        return 0 if self.companion is not None else self.MOST


class Pool:
    """Instead of keys and values, every slot holds a hash of the tokens up to its own: what they would depend on."""

    def __init__(self, pages, limits=ROOMY):
        self.book = PageBook(pages)
        self.scheduler = Scheduler(self.book, limits)
        self.slots = [[None] * PAGE_TOKENS for _ in range(pages)]
        self.hashes, self.prompts = {}, {}
        self.num_computed = 0
        self.started = []

    def step(self):
        """One step, checked; returns its plan."""
        plan = self.scheduler.plan()
        copied = [list(self.slots[copy.source]) for copy in plan.copies]
        for copy, contents in zip(plan.copies, copied, strict=True):
            self.slots[copy.target] = contents
        for part in plan.parts + plan.beside:
            self.compute(part.sequence, part.count)
        self.started += [part.sequence for part in plan.parts if part.sequence not in self.started]
        return plan

    def try_out(self, sequence, token, room):
        """As many guesses as there is room for, of which the first few come true."""
        right = token % (room + 1)
        for _ in range(right):
            sequence.tokens.append(token)
            self.compute(sequence, 1)
        for place in range(sequence.num_stored, sequence.num_stored + room - right):
            self.slots[sequence.pages[place // PAGE_TOKENS]][place % PAGE_TOKENS] = "a guess that is not right"

    def compute(self, sequence, count):
        stored, stop = sequence.num_stored, sequence.num_stored + count
        assert len(sequence.pages) == len(set(sequence.pages))
        assert pages_for(stop) <= len(sequence.pages) <= pages_for(stop + sequence.num_guessable)
        expected = self.hashes_of(sequence)[:stop]
        seen = [seen for page in sequence.pages for seen in self.slots[page]]
        assert seen[:stored] == expected[:stored], "a key that belongs to another text"
        for place in range(stored, stop):
            self.slots[sequence.pages[place // PAGE_TOKENS]][place % PAGE_TOKENS] = expected[place]
        sequence.num_stored = stop
        self.num_computed += count

    def hashes_of(self, sequence):
        """Of its tokens up to each one."""
        hashes = self.hashes[sequence]
        for token in sequence.tokens[len(hashes) :]:
            hashes.append(hash((hashes[-1] if hashes else 0, token)))
        return hashes

    @property
    def num_running(self):
        return sum(bool(sequence.pages) for sequence in self.scheduler)

    def advance(self, token=lambda sequence: len(sequence.tokens) % 7):
        """A step, and a next token for each sequence that is ready; None takes all that came back, or up to 300."""
        plan = self.step()
        for part in plan.parts:
            sequence = part.sequence
            assert len({member.num_pending == 0 for member in sequence.members}) == 1, "one is ahead of the other"
            if sequence.num_pending == 0 and (following := token(sequence)) is not None:
                self.try_out(sequence, following, part.room)
                for member in sequence.members:
                    member.tokens.append(following)
            elif sequence.num_pending == 0:
                sequence.take_back(min(300, len(sequence.tokens) - self.prompts[sequence]))
                for member in sequence.members:
                    del self.hashes[member][len(member.tokens) :]
        self.scheduler.stored(plan)
        assert self.book.num_free + self.book.num_held == self.book.total
        return plan

    def add(self, tokens, beside=None, **options):
        sequence = Guessable(tokens)
        sequence.companion = None if beside is None else Holding(beside)
        self.hashes |= {member: [] for member in sequence.members}
        self.prompts[sequence] = len(tokens)
        self.scheduler.add(sequence, **options)
        return sequence


def counts(plan):
    return [part.count for part in plan.parts]


def text(length, start=0):
    """Tokens that no two starts share."""
    return [start * 100_000 + i for i in range(length)]


class TestPrompts:
    def test_are_read_in_chunks_that_end_with_a_page(self):
        pool = Pool(20, Limits(64, prompt_tokens=600))
        pool.add(text(1300))
        assert [counts(pool.advance()) for _ in range(4)] == [[512], [512], [276], [1]]

    def test_share_a_step(self):
        pool = Pool(20, Limits(64, prompt_tokens=600))
        for i in range(3):
            pool.add(text(250, i))
        assert [counts(pool.advance()) for _ in range(2)] == [[250, 250, 100], [1, 1, 150]]

    def test_do_not_stall_those_who_wait_for_a_token(self):
        pool = Pool(40, Limits(64, 2048, tokens_beside=256))
        running = pool.add(text(10))
        pool.advance()
        pool.add(text(2000, 1))
        plans = [pool.advance() for _ in range(9)]
        assert [counts(plan) for plan in plans] == [[1, 256]] * 7 + [[1, 208]] + [[1, 1]]
        assert all(plan.parts[0].sequence is running for plan in plans)

    def test_that_come_together_are_read_in_few_steps(self):
        pool = Pool(64, Limits(64, 2048, tokens_beside=2048 - 64))
        for i in range(64):
            pool.add(text(128, i))
        sums = [sum(count for count in counts(pool.advance()) if count > 1) for _ in range(5)]
        assert sums == [2048, 1984, 1984, 1984, 192]
        assert counts(pool.advance()) == [1] * 64

    def test_only_so_many_run_at_once(self):
        pool = Pool(40, Limits(3, 2048))
        sequences = [pool.add(text(5, i)) for i in range(5)]
        assert len(counts(pool.advance())) == 3
        pool.scheduler.remove(sequences[1])
        assert [part.sequence for part in pool.advance().parts] == [sequences[0], sequences[2], sequences[3]]


class TestSteadySteps:
    """One plan serves again as long as everyone goes on by a token, so that whoever carries it out may look ahead."""

    def plans(self, pool, steps):
        return [pool.advance() for _ in range(steps)]

    def test_have_one_plan_until_a_page_is_full(self):
        pool = Pool(8)
        pool.add(text(PAGE_TOKENS - 3)), pool.add(text(10))
        _, first, *rest = self.plans(pool, 6)
        assert counts(first) == [1, 1]
        assert [plan is first for plan in rest] == [True, True, False, False]
        assert rest[2] is rest[3]

    def test_have_another_once_someone_leaves_or_comes(self):
        pool = Pool(8)
        first, _ = pool.add(text(10)), pool.add(text(20))
        _, both = self.plans(pool, 2)
        pool.scheduler.remove(first)
        alone = pool.advance()
        assert alone is not both
        assert counts(alone) == [1]
        pool.add(text(5))
        assert counts(pool.advance()) == [1, 5]
        assert counts(pool.advance()) == [1, 1]

    def test_have_another_once_tokens_were_taken_back(self):
        pool = Pool(8)
        pool.add(text(100))
        _, first, _ = self.plans(pool, 3)
        pool.advance(lambda sequence: None)
        assert pool.advance() is not first

    def test_have_another_after_one_that_was_cut_off(self):
        pool = Pool(8)
        pool.add(text(100))
        _, first = self.plans(pool, 2)
        pool.scheduler.interrupted(pool.scheduler.plan())
        assert pool.advance() is not first


class TestCompanions:
    def test_both_read_their_prompts_and_take_each_token_together(self):
        pool = Pool(20, Limits(64, prompt_tokens=300))
        sequence = pool.add(text(10), beside=text(500, 1))
        plans = [pool.advance() for _ in range(5)]
        assert [counts(plan) for plan in plans] == [[9], [], [1], [1], [1]]
        assert [[part.count for part in plan.beside] for plan in plans] == [[256], [243], [1], [1], [1]]
        assert sequence.tokens[10:] == sequence.companion.tokens[500:]
        pool.scheduler.remove(sequence)
        assert pool.book.num_held == 0

    def test_both_are_sent_away_and_come_back(self):
        pool = Pool(4, Limits(64, prompt_tokens=2048))
        first = pool.add(text(250))
        second = pool.add(text(200, 1), beside=text(100, 2))
        pool.advance(), pool.advance()
        for _ in range(300):
            pool.advance()
        assert second.pages == second.companion.pages == []
        pool.scheduler.remove(first)
        pool.advance(), pool.advance()
        assert second.pages
        assert second.companion.pages
        assert second.tokens[200:] == second.companion.tokens[100:]


class TestSharing:
    def test_a_second_request_with_the_same_4000_tokens_reads_less_than_a_page(self):
        pool = Pool(60)
        first = pool.add([*text(4000), 1, 2, 3])
        pool.advance(), pool.advance()
        before = pool.num_computed
        second = pool.add([*text(4000), 7, 8])
        pool.advance()
        assert pool.num_computed - before == 1 + 2
        assert second.num_reused == 4000
        assert second.pages[:15] == first.pages[:15]
        assert pool.book.num_held == 16 + 1

    def test_it_does_so_after_the_first_has_ended(self):
        pool = Pool(60)
        pool.scheduler.remove(self.read(pool, text(4000)))
        second = self.read(pool, text(4000))
        assert second.num_reused == 3999  # the last is computed: from it follows the next
        assert pool.num_computed == 4001

    def test_requests_that_come_together_read_their_common_beginning_once(self):
        pool = Pool(100)
        for i in range(8):
            pool.add(text(1000) + text(5, i + 1))
        while pool.num_running < 8 or any(s.num_pending > 1 for s in pool.scheduler):
            pool.advance()
        assert pool.num_computed - self.num_generated(pool) == 1000 + 8 * 5
        assert pool.book.num_held == 3 + 8

    def test_pages_that_become_the_same_are_held_once(self):
        pool = Pool(10)
        sequences = [pool.add([1]) for _ in range(2)]
        for _ in range(PAGE_TOKENS - 1):
            pool.advance()
        assert pool.book.num_held == 2
        pool.advance(), pool.advance()
        assert sequences[0].pages[0] == sequences[1].pages[0]
        assert pool.book.num_held == 1 + 2

    def test_a_beginning_of_few_tokens_is_computed_anew(self):
        pool = Pool(10)
        self.read(pool, text(50))
        assert self.read(pool, text(15) + text(50, 1)).num_reused == 0
        assert self.read(pool, text(16) + text(50, 2)).num_reused == 16

    def test_what_may_be_wrong_is_found_by_nobody(self):
        pool = Pool(10)
        pool.scheduler.remove(self.read(pool, text(600)), is_sound=False)
        assert self.read(pool, text(600)).num_reused == 0

    @staticmethod
    def read(pool, tokens):
        sequence = pool.add(tokens)
        while sequence.num_pending > 1 or len(sequence.tokens) == len(tokens):
            pool.advance()
        return sequence

    @staticmethod
    def num_generated(pool):
        return sum(len(sequence.tokens) - 1005 - 1 for sequence in pool.scheduler)


class TestQueue:
    def test_the_newest_leaves_where_pages_run_out_and_comes_back(self):
        pool = Pool(4)
        old, new = pool.add(text(2 * PAGE_TOKENS - 1)), pool.add(text(2 * PAGE_TOKENS - 1, 1))
        pool.advance()
        assert [len(old.pages), len(new.pages)] == [2, 2]
        pool.advance(), pool.advance()
        assert [len(old.pages), len(new.pages)] == [3, 0]
        pool.scheduler.remove(old)
        pool.advance()
        assert new.num_stored == len(new.tokens) - 1 == 2 * PAGE_TOKENS + 1
        assert pool.num_computed < 6 * PAGE_TOKENS  # it found one of its own pages again

    def test_a_page_whose_copy_was_not_made_is_found_by_nobody(self):
        pool = Pool(6, Limits(4, prompt_tokens=256))
        sequence = pool.add(text(4 * PAGE_TOKENS))
        pool.advance()
        (source,) = pool.book.take(1)  # of someone who read on from the same page, and is gone
        pool.book.note(source, sequence.key(1), sequence.tokens[PAGE_TOKENS : PAGE_TOKENS + 100])
        pool.book.give_back([source])
        others = pool.book.take(3)
        pool.scheduler.limits = Limits(4, prompt_tokens=2048)
        assert pool.advance().copies == ()  # one page is free for the copy, and none for the rest
        assert sequence.pages == []
        pool.book.forget(source)
        pool.book.give_back(others)
        pool.advance()
        assert sequence.num_stored == 4 * PAGE_TOKENS
        assert sequence.num_reused == 0  # of its own first page neither: all that it held is doubted

    def test_smaller_ones_may_overtake_but_not_for_ever(self):
        pool = Pool(4)
        running = pool.add(text(PAGE_TOKENS + 1))
        pool.advance()
        large = pool.add(text(3 * PAGE_TOKENS, 1), patience=2)
        small = [pool.add(text(5, 2 + i)) for i in range(4)]
        pool.advance()
        assert [bool(sequence.pages) for sequence in small] == [True, True, False, False]
        for sequence in (running, *small[:2]):
            pool.scheduler.remove(sequence)
        pool.advance()
        assert [bool(sequence.pages) for sequence in (large, *small[2:])] == [True, True, False]

    def test_pages_that_others_hold_make_an_empty_plan(self):
        pool = Pool(4)
        pool.book.take(4)
        pool.add([1, 2, 3])
        plan = pool.advance()
        assert plan.parts == plan.copies == ()

    def test_whoever_was_removed_is_not_served_and_may_be_removed_again(self):
        pool = Pool(4)
        running, waiting = pool.add([1] * 600), pool.add([2] * 600)
        pool.advance()
        for sequence in (waiting, running, running):
            pool.scheduler.remove(sequence)
        assert pool.advance().parts == ()
        assert pool.book.num_held == len(pool.scheduler) == 0


class TestTakingBack:
    def test_others_keep_the_pages_that_they_share(self):
        pool = Pool(20)
        first = pool.add(text(10))
        for _ in range(600):
            pool.advance(lambda sequence: 5)
        second = pool.add(first.tokens[:550])
        pool.advance(lambda sequence: 6)
        shared = first.pages[1]
        assert second.pages[1] == shared
        pool.advance(lambda sequence: None if sequence is first else 6)  # back into the second page
        assert len(first.tokens) == 311
        for _ in range(10):
            pool.advance(lambda sequence: 8)
        assert second.pages[1] == shared
        assert first.pages[1] != shared
        assert first.num_stored == len(first.tokens) - 1 == 320

    def test_what_is_taken_back_is_found_by_nobody(self):
        pool = Pool(20)
        first = pool.add(text(10))
        for _ in range(100):
            pool.advance(lambda sequence: 5)
        said = first.tokens[:100]
        pool.advance(lambda sequence: None)
        for _ in range(100):
            pool.advance(lambda sequence: 8)
        pool.scheduler.remove(first)
        second = pool.add(said)
        pool.advance()
        assert second.num_reused < 16


class TestGuesses:
    LIMITS = Limits(64, 2048, guesses=3, rows=8)

    def decoding(self, count, pages=20, limits=LIMITS, length=10):
        pool = Pool(pages, limits)
        for i in range(count):
            pool.add(text(length, i))
        assert [part.room for part in pool.advance().parts] == [0] * count  # of prompts
        return pool

    def test_share_what_the_sequences_leave_of_a_step(self):
        for count, room in [(1, 3), (2, 3), (3, 1), (4, 1), (5, 0), (9, 0)]:
            plan = self.decoding(count).advance()
            assert [part.room for part in plan.parts] == [room] * count

    def test_no_more_than_the_sequence_may_say(self):
        pool = self.decoding(1, limits=Limits(64, 2048, guesses=9))
        assert pool.advance().parts[0].room == Guessable.MOST

    def test_get_pages_only_where_some_are_free(self):
        pool = self.decoding(1, pages=1, length=PAGE_TOKENS - 3)
        assert [pool.advance(lambda sequence: 0).parts[0].room for _ in range(2)] == [2, 1]
        pool = self.decoding(1, pages=2, length=PAGE_TOKENS - 3)
        assert pool.advance().parts[0].room == 3

    def test_send_nobody_away(self):
        pool = self.decoding(2, pages=2, length=PAGE_TOKENS - 2)
        plan = pool.advance(lambda sequence: 0)
        assert [part.room for part in plan.parts] == [1, 1]
        assert pool.num_running == 2


def serve_all(pool, requests, rng, cancel_rate, take_back_rate=0.0):
    """Requests (prompt, length of answer, patience, prompt beside it or None) that come at random and are sometimes
    given up; all must end."""
    waiting, ends = list(requests), {}
    while waiting or len(pool.scheduler):
        while waiting and rng.random() < 0.7:
            prompt, answer, patience, beside = waiting.pop()
            ends[pool.add(prompt, beside, patience=patience)] = len(prompt) + answer
        plan = pool.advance(lambda sequence: None if rng.random() < take_back_rate else rng.randrange(3))
        assert not plan.is_empty or not len(pool.scheduler), "nobody moves"
        for part in plan.parts:
            if len(part.sequence.tokens) >= ends[part.sequence]:
                pool.scheduler.remove(part.sequence)
        for sequence in pool.scheduler:
            if rng.random() < cancel_rate:
                pool.scheduler.remove(sequence)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_thousand_requests_with_a_pool_of_a_tenth_of_their_demand_all_end(seed):
    rng = random.Random(seed)
    shared = [text(rng.randrange(300, 700), 1 + i) for i in range(5)]
    requests = [
        (rng.choice(shared)[: rng.randrange(600)] + text(rng.randrange(1, 300), 10 + i), rng.randrange(1, 40), 4, None)
        for i in range(1000)
    ]
    at_once = 30
    demand = sum(pages_for(len(prompt) + answer) for prompt, answer, *_ in requests[:at_once])
    pool = Pool(max(5, demand // 10), Limits(at_once, 2048, guesses=seed * 4))
    serve_all(pool, requests, rng, cancel_rate=0.002)
    assert pool.book.num_held == 0
    arrived = {sequence: number for number, sequence in enumerate(pool.prompts)}
    for turn, sequence in enumerate(pool.started):
        earlier = sum(arrived[other] > arrived[sequence] for other in pool.started[:turn])
        assert earlier <= 4, "starved"


prompts = st.tuples(st.integers(1, 900), st.integers(0, 3))  # length, and of which text
patiences = st.sampled_from([0, 1, 4, None])
requests = st.tuples(prompts, st.integers(1, 300), patiences, st.none() | prompts)


@given(st.lists(requests, min_size=1, max_size=12), st.integers(5, 9), st.integers(1, 5), st.integers(0, 99))
def test_any_requests_end_and_read_only_what_belongs_to_them(wanted, pages, at_once, seed):
    """Prompts of four texts only, so that pages are shared in every way there is; the stub checks what is read."""
    pool = Pool(pages, Limits(at_once, prompt_tokens=300, tokens_beside=100, guesses=seed % 6, rows=12))
    made = [
        (text(*prompt), answer, patience, None if beside is None else text(*beside))
        for prompt, answer, patience, beside in wanted
        if pages_for(prompt[0] + answer) + (0 if beside is None else pages_for(beside[0] + answer)) <= pages
    ]
    serve_all(pool, made, random.Random(seed), cancel_rate=0.01, take_back_rate=0.003)
    assert pool.book.num_held == 0
