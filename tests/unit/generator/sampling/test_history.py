"""A growing text beside a list that does the same."""

from hypothesis import given
from hypothesis import strategies as st

from polybit.generator.sampling.history import History

CHANGES = st.lists(st.tuples(st.sampled_from(["append", "cut", "read", "copy"]), st.integers(0, 200)), max_size=40)


@given(st.lists(st.integers(0, 1 << 30), max_size=70), CHANGES)
def test_says_what_a_list_would(prompt, changes):
    history, expected = History(prompt), list(prompt)
    for change, number in changes:
        if change == "append":
            for token in range(number):
                history.append(token)
            expected += range(number)
        elif change == "cut":
            expected = expected[: max(0, len(expected) - number)]
            history.truncate(len(expected))
        elif change == "read":
            assert history.last(number).tolist() == expected[len(expected) - min(number, len(expected)) :]
        else:
            history = history.copy()
        assert len(history) == len(expected)
    assert history.all().tolist() == expected
