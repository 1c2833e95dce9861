"""The JSON objects beside a model's weights, read with one-line errors."""

import json
from pathlib import Path
from typing import Any

from polybit.errors import ConfigError


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`, None where there is no such file. Raises ConfigError if it holds anything else."""
    text = read_text(path)
    if text is None:
        return None
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair, which nothing downstream can encode
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON ({error}); fetch it again") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds a {type(value).__name__}, expected a JSON object; fetch it again")
    return value


def read_text(path: Path) -> str | None:
    """The file's text, None where there is no such file."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}); fetch it again") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})") from None
