from hypothesis import given
from hypothesis import strategies as st

from polybit.generator.stopping import HeldText


def run(stops, pieces):
    held = HeldText(stops)
    out = []
    for piece in pieces:
        out.append(held.feed(piece))
        if held.matched is not None:
            return out, held.matched
    return [*out, held.finish()], None


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
    held = HeldText([stop])
    seen = shown = ""
    for piece in pieces:
        seen += piece
        shown += held.feed(piece)
        if held.matched is not None:
            return
        waiting = seen[len(shown) :]
        assert waiting == "" or (stop.startswith(waiting) and waiting != stop)
