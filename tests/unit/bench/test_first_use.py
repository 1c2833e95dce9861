"""Fresh processes and their caches."""

from pathlib import Path

import pytest

from polybit.bench import first_use
from polybit.bench.subject import Request
from polybit.errors import KernelError
from polybit.model.options import LoadOptions
from unit.bench.subjects import write_config


def test_a_fresh_process_comes_to_its_first_token(tmp_path: Path) -> None:
    request = Request(None, f"{write_config(tmp_path)}@4.0", 6, 0, LoadOptions(device="cpu"))
    assert 0.1 < first_use._seconds_to_first_token(request, str(tmp_path)) < 600


def test_a_process_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_use, "__name__", "polybit_of_nowhere")
    with pytest.raises(KernelError, match=r"did not come to its first token: .*polybit_of_nowhere"):
        first_use.measure_first_use(Request("/nowhere", None, 6, 0, LoadOptions(device="cpu")))


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
