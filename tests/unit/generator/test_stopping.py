from hypothesis import given
from hypothesis import strategies as st

from polybit.generator.stopping import TextWatch, fold


def run(stops, pieces):
    watch = TextWatch(stops)
    out = []
    for piece in pieces:
        watched = watch.feed(piece)
        out.append(watched.text)
        if watched.stopped_by is not None:
            return out, watched.stopped_by
    return [*out, watch.finish().text], None


def test_a_stop_string_split_over_pieces():
    assert run(["###"], ["a#", "#", "b", "##", "#c"]) == (["a", "", "##b", "", ""], "###")


def test_text_that_only_began_like_a_stop_string_comes_out():
    assert run(["stop"], ["sto", "re"]) == (["", "store", ""], None)
    assert run(["stop"], ["sto"]) == (["", "sto"], None)


def test_the_earliest_of_several_wins():
    assert run(["lo", "ell"], ["hello"]) == (["h"], "ell")


@given(st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.lists(st.text("abc", max_size=3)))
def test_pieces_say_the_same_as_the_whole_text(stops, pieces):
    text = "".join(pieces)
    out, matched = run(stops, pieces)
    # The first stop string to be complete ends the text, so look at ever longer beginnings.
    ended = next(((n, s) for n in range(len(text) + 1) for s in stops if text[:n].endswith(s)), None)
    if ended is None:
        assert (matched, "".join(out)) == (None, text)
    else:
        assert matched in stops
        shown = "".join(out)
        assert text.startswith(shown + matched)
        assert not any(stop in shown for stop in stops)


@given(st.text("ab", min_size=1, max_size=4), st.lists(st.text("abc", max_size=3)))
def test_nothing_is_held_longer_than_needed(stop, pieces):
    watch = TextWatch([stop])
    seen = shown = ""
    for piece in pieces:
        watched = watch.feed(piece)
        seen, shown = seen + piece, shown + watched.text
        if watched.stopped_by is not None:
            return
        waiting = seen[len(shown) :]
        assert waiting == "" or (stop.startswith(waiting) and waiting != stop)


class TestBanned:
    def test_takes_back_all_tokens_since_it_began(self):
        watch = TextWatch(banned=["delve into"])
        assert watch.feed("Let us ").text == "Let us "
        assert watch.feed("del").text == watch.feed("ve").text == ""
        watched = watch.feed(" INTO it")
        assert (watched.text, watched.banned, watched.taken_back) == ("", "delve INTO", 3)
        assert watch.feed("look at").text == "look at"

    def test_text_in_front_of_it_in_the_same_token_goes_too(self):
        watch = TextWatch(banned=["bad"])
        assert watch.feed("so ba").text == ""
        assert watch.feed("d").taken_back == 2

    def test_what_only_began_like_it_comes_out(self):
        watch = TextWatch(banned=["bad"])
        assert [watch.feed(piece).text for piece in ("ba", "ba", "na")] == ["", "ba", "bana"]
        assert watch.num_waiting == 0

    def test_a_stop_string_before_it_ends_the_text_first(self):
        watch = TextWatch(["."], banned=["bad"])
        watched = watch.feed("end. bad")
        assert (watched.text, watched.stopped_by, watched.taken_back) == ("end", ".", 0)

    def test_one_before_the_stop_string_takes_back(self):
        watch = TextWatch(["."], banned=["bad"])
        assert watch.feed("bad end.").taken_back == 1

    def test_what_waits_at_the_end_comes_out(self):
        watch = TextWatch(banned=["bad"])
        watch.feed("ba")
        assert watch.finish().text == "ba"

    def test_a_token_with_the_first_byte_of_its_first_character_goes_too(self):
        watch = TextWatch(banned=["é!"])
        assert watch.feed("x", is_whole=True).text == "x"
        assert watch.feed("", is_whole=False).text == ""
        assert watch.feed("é").text == ""
        assert watch.feed("!").taken_back == 3

    def test_case_never_moves_places(self):
        assert fold("İÉx") == "İéx"


@given(st.lists(st.text("abA", min_size=1, max_size=3), min_size=1, max_size=3), st.lists(st.text("abcA", max_size=3)))
def test_a_text_without_banned_ones_comes_out_as_it_is(banned, pieces):
    watch, shown, fed = TextWatch(banned=banned), "", ""
    for piece in pieces:
        watched = watch.feed(piece)
        fed += piece
        shown += watched.text
        assert bool(watched.taken_back) == any(fold(text) in fold(fed) for text in banned)
        if watched.taken_back:
            return
        assert fed.startswith(shown)
    assert shown + watch.finish().text == fed
