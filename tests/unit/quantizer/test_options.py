"""Options of a conversion: wrong names and types are refused in one line, before anything is opened."""

from pathlib import Path
from typing import Any

import pytest

from polybit.errors import JobError
from polybit.quantizer.convert import ConvertOptions, convert


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"bitz": 4.0}, "did you mean bits"),
        ({"bits": "a"}, "bits is 'a', expected a number"),
        ({"rows": 2.5}, "rows is 2.5, expected a whole number"),
        ({"resume": 1}, "resume is 1, expected True or False"),
        ({"bits": float("nan")}, "bits is nan"),
        ({"head_bits": 7}, "head_bits is 7"),
        ({"rows": 0}, "rows is 0, expected at least 1"),
    ],
)
def test_bad_fields(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(JobError, match=words):
        convert(tmp_path / "no source", tmp_path / "out", **fields)
    assert not (tmp_path / "out").exists()


def test_paths_may_be_texts() -> None:
    assert ConvertOptions(work_dir="somewhere").work_dir == Path("somewhere")
    assert ConvertOptions(calibration=Path("text.txt")).calibration == "text.txt"
