"""Fresh processes and their caches."""

import pytest

from polybit.bench import first_use
from polybit.bench.subject import Request
from polybit.errors import KernelError
from polybit.model.options import LoadOptions


def test_a_process_that_fails_says_why() -> None:
    request = Request("/nowhere", None, 6, 0, LoadOptions(device="cpu"))
    with pytest.raises(KernelError, match=r"did not come to its first token: .*/nowhere is not a folder"):
        first_use.measure_first_use(request)


def test_the_second_process_finds_what_the_first_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, str]] = []

    def watch(request: Request, cache: str) -> float:
        given.append(first_use._environment(cache))
        return float(len(given))

    monkeypatch.setattr(first_use, "_seconds_to_first_token", watch)
    measured = first_use.measure_first_use(Request(None, "llama-1b@2.4", 6, 0, LoadOptions()))
    assert (measured.empty_cache, measured.full_cache) == (1.0, 2.0)
    first, second = ({name: env[name] for name in first_use.CACHES} for env in given)
    assert first == second
    assert len(set(first.values())) == len(first_use.CACHES)
