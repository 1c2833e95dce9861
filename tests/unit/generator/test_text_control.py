"""Tokens in, text out, over a vocabulary that a test can read; the model is a list of wishes."""

import random

from hypothesis import given
from hypothesis import strategies as st

from polybit.generator.filters import OneOf
from polybit.generator.sampling.mask import mask_of, tokens_in
from polybit.generator.stopping import fold
from polybit.generator.text_control import GO_ON, Limits, TextControl, Verdict
from polybit.text import Detokenizer, PieceIndex
from polybit.text.pieces import Pieces

WRITTEN = ["a", "b", "A", "ab", "ba", "c ", "é", "", b"\xc3", b"\xa9", b"\xf0\x9f", "<end>"]
PIECES = {i: piece if isinstance(piece, bytes) else piece.encode() for i, piece in enumerate(WRITTEN)}
END = len(WRITTEN) - 1
PIECES_OF = Pieces(PIECES, frozenset([END]), strips_lead=False)
VOCABULARY = len(WRITTEN)


def detokenizer():
    return Detokenizer(PIECES_OF)


def control(most=100, least=0, ends=(END,), **options):
    return TextControl(detokenizer(), Limits(frozenset(ends), most, least), **options)


def token(piece):
    return WRITTEN.index(piece)


def write(machine, *pieces):
    """The text that each made certain, and what else follows from it."""
    return [feed(machine, token(piece)) for piece in pieces]


def feed(machine, token):
    num_told = len(machine.pieces)
    verdict = machine.feed(token)
    return "".join(machine.pieces[num_told:]), verdict


class TestEnding:
    def test_an_end_token_goes_and_nothing_waits(self):
        machine = control(stops=["ab"])
        assert write(machine, "c ", "a", "<end>")[1:] == [
            ("", GO_ON),
            ("a", Verdict(taken_back=1, finish_reason="stop", stopped_by=END)),
        ]

    def test_a_stop_string(self):
        machine = control(stops=["ab"])
        assert write(machine, "c ", "a", "ba")[-1] == ("", Verdict(finish_reason="stop", stopped_by="ab"))

    def test_the_limit(self):
        assert write(control(most=2, stops=["ab"]), "c ", "a")[-1] == ("a", Verdict(finish_reason="length"))

    def test_an_unfinished_character_at_the_limit(self):
        assert write(control(most=2), "a", b"\xc3")[-1] == ("\ufffd", Verdict(finish_reason="length"))

    def test_no_end_before_the_least(self):
        machine = control(least=2)
        blocked = []
        for piece in ("a", "b", "c "):
            blocked.append(machine.blocked)
            write(machine, piece)
        assert blocked == [{END}, {END}, set()]


class TestBanned:
    def test_the_first_token_is_not_tried_again_there(self):
        machine = control(banned=["ab"])
        assert write(machine, "c ", "a", "b")[-1] == ("", Verdict(taken_back=2, suppressed="ab"))
        assert machine.blocked == {token("a")}
        assert write(machine, "ab")[-1] == ("", Verdict(taken_back=1, suppressed="ab"))
        assert machine.blocked == {token("a"), token("ab")}
        assert write(machine, "b")[-1] == ("b", GO_ON)
        assert machine.blocked == set()

    def test_tokens_are_blocked_only_where_they_led_to_it(self):
        machine = control(banned=["aab"])
        write(machine, "a", "a", "b")
        assert machine.blocked == {token("a")}
        write(machine, "A")  # which may begin it too
        assert machine.blocked == set()
        assert write(machine, "ab")[-1] == ("", Verdict(taken_back=2, suppressed="Aab"))
        assert machine.blocked == {token("a"), token("A")}

    def test_half_a_character_goes_with_the_other_half(self):
        machine = control(banned=["é"])
        assert write(machine, b"\xc3", b"\xa9")[-1] == ("", Verdict(taken_back=2, suppressed="é"))
        assert machine.blocked == {token(b"\xc3")}
        assert write(machine, "a")[-1] == ("a", GO_ON)

    def test_taken_back_tokens_do_not_count(self):
        machine = control(most=2, banned=["ab"])
        assert write(machine, "a", "b", "b", "c ")[-1] == ("c ", Verdict(finish_reason="length"))

    @given(
        st.lists(st.text("abAé ", min_size=1, max_size=3), min_size=1, max_size=3),
        st.lists(st.sampled_from(["ac", "bb"]), max_size=1),
        st.integers(0, 10_000),
        st.integers(1, 12),
    )
    def test_whatever_a_model_wants_it_never_writes_them(self, banned, stops, seed, most):
        machine, wishes = control(most=most, banned=banned, stops=stops), random.Random(seed)
        kept, shown, verdict = [], "", Verdict()
        for _ in range(3000):
            free = [t for t in range(VOCABULARY) if t not in machine.blocked]
            if verdict.finish_reason is not None or not free:
                break
            kept.append(wishes.choice(free))
            piece, verdict = feed(machine, kept[-1])
            del kept[len(kept) - verdict.taken_back :]
            shown += piece
            reader = detokenizer()
            text = "".join(map(reader.feed, kept))
            assert (text + reader.finish()).startswith(shown)
            if verdict.finish_reason is None:
                assert not any(fold(string) in fold(text) for string in banned)
        assert verdict.finish_reason is not None or not free
        assert not any(fold(string) in fold(shown) for string in banned)


class TestFirst:
    def test_only_the_first_token_is_bound_and_writes_what_is_new(self):
        reader = detokenizer()
        reader.skip(1)
        machine = TextControl(reader, Limits(frozenset([END]), 9), first=mask_of([token("a"), token("ab")], VOCABULARY))
        assert tokens_in(machine.allowed()) == [token("a"), token("ab")]
        assert write(machine, "ab", "ab") == [("b", GO_ON), ("ab", GO_ON)]
        assert machine.allowed() is None


class TestForesight:
    def test_shows_the_places_ahead_and_leaves_them(self):
        machine = control(most=5, least=2)
        assert machine.blocked == {END}
        assert machine.foresee(token("a"))
        assert machine.foresee(token("b"))
        assert (machine.blocked, machine.num_left) == (frozenset(), 3)
        machine.look_back()
        assert (machine.blocked, machine.num_left) == ({END}, 5)

    def test_ends_where_the_text_must_or_may(self):
        machine = control(most=3)
        assert not machine.foresee(END)
        assert [machine.foresee(token("a")) for _ in range(3)] == [True, True, False]
        machine.look_back()
        assert write(machine, "a", "a", "a")[-1][1].finish_reason == "length"

    def test_follows_a_filter_and_stops_where_it_is_done(self):
        machine = control(filter_=OneOf(["aba", "abc "], PieceIndex(PIECES_OF), VOCABULARY, [END]))
        before = tokens_in(machine.allowed())
        assert machine.foresee(token("ab"))
        assert tokens_in(machine.allowed()) == [token("a"), token("c ")]
        assert not machine.foresee(token("a"))
        assert tokens_in(machine.allowed()) == [token("a"), token("c ")]
        machine.look_back()
        assert tokens_in(machine.allowed()) == before
        assert write(machine, "ab", "a")[-1][1].finish_reason == "stop"

    def test_knows_what_was_tried_only_where_it_was_tried(self):
        machine = control(banned=["b"])
        write(machine, "b")
        assert machine.blocked == {token("b")}
        machine.foresee(token("a"))
        assert machine.blocked == frozenset()
        machine.look_back()
        assert machine.blocked == {token("b")}


@given(st.lists(st.sampled_from(range(VOCABULARY - 1)), max_size=12))
def test_text_comes_out_as_it_is_where_nothing_is_watched(tokens):
    machine, reader = control(), detokenizer()
    for each in tokens:
        assert feed(machine, each) == (reader.feed(each), GO_ON)
