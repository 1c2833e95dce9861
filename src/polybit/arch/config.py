"""A typed reader of config.json that remembers what was read. It knows JSON types and ranges, and no architecture."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from polybit.arch.inert import INERT_KEYS
from polybit.errors import ConfigError, UnsupportedModel

MOST = 2**31 - 1
REALS = (1e-30, 1e18)  # wide enough for every constant of a model, and nothing computed from them overflows
_ABSENT = object()
T = TypeVar("T")


class HFConfig:
    """One level of a config.json.

    A key may be given under several names: the first that has a value counts, all are marked as read. `null` is an
    absent key, except where an optional value has a default: there it means None. Errors: ConfigError, one line.
    """

    def __init__(
        self,
        values: Mapping[str, object],
        where: str,
        architecture: str,
        path: str = "",
        defaults: Mapping[str, object] | None = None,
    ) -> None:
        self.architecture = architecture
        self._values = {**(defaults or {}), **values}
        self._where = where
        self._path = path
        self._read = set(defaults or ()) - set(values)
        self._children: dict[str, HFConfig] = {}

    # ---- values

    def count(self, *keys: str, default: int | None = None, least: int = 1, most: int = MOST) -> int:
        """A whole number in [least, most]; required where `default` is None."""
        return self._required(keys, default, lambda key, value: self._as_count(key, value, least, most))

    def optional_count(self, *keys: str, default: int | None = None) -> int | None:
        return self._optional(keys, default, lambda key, value: self._as_count(key, value, 1, MOST))

    def real(self, *keys: str, default: float | None = None) -> float:
        """A number within REALS, so above 0; required where `default` is None."""
        return self._required(keys, default, self._as_real)

    def optional_real(self, *keys: str, default: float | None = None) -> float | None:
        return self._optional(keys, default, self._as_real)

    def flag(self, *keys: str, default: bool | None = None) -> bool:
        return self._required(keys, default, self._as_flag)

    def text(self, *keys: str, default: str | None = None) -> str:
        return self._required(keys, default, self._as_text)

    def texts(self, key: str) -> tuple[str, ...] | None:
        return self._optional((key,), None, lambda key, value: self._as_list(key, value, self._as_text))

    def reals(self, key: str) -> tuple[float, ...] | None:
        return self._optional((key,), None, lambda key, value: self._as_list(key, value, self._as_real))

    def counts(self, key: str) -> tuple[int, ...] | None:
        """Whole numbers from 0."""
        return self._optional(
            (key,), None, lambda key, value: self._as_list(key, value, lambda k, v: self._as_count(k, v, 0, MOST))
        )

    def child(self, key: str, defaults: Mapping[str, object] | None = None) -> "HFConfig":
        """The object under `key`, whose unread keys count as this one's; `defaults` stand in for its absent keys."""
        found = self.optional_child(key, defaults)
        if found is None:
            raise self._missing((key,))
        return found

    def optional_child(self, key: str, defaults: Mapping[str, object] | None = None) -> "HFConfig | None":
        value = self._find((key,))[1]
        if value is _ABSENT or value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(key, value, "an object")
        if key not in self._children:
            path = f"{self._path}{key}."
            self._children[key] = HFConfig(value, self._where, self.architecture, path, defaults)
        return self._children[key]

    # ---- keys without a value of their own in the spec

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def only(self, key: str, *allowed: object) -> None:
        """Refuse every value but `allowed` (and absence): a feature that is not implemented."""
        value = self._find((key,))[1]
        if value is not _ABSENT and value is not None and value not in allowed:
            listed = " or ".join(map(_short, allowed))
            raise UnsupportedModel(
                f"{self._where}: {self._path}{key} is {_short(value)}; "
                f"polybit implements {self.architecture} only with {listed}"
            )

    def skip(self, *keys: str) -> None:
        """Keys that have no part in this model's text."""
        self._read.update(keys)

    def skip_copies(self, child: "HFConfig") -> None:
        """Keys that only repeat the child's: writers between two generations gave both."""
        self._read.update(key for key, value in child._values.items() if self._values.get(key) == value)

    def refuse_unread(self) -> None:
        """Errors: UnsupportedModel for a key that has a value, might matter, and was not read, here or in a child."""
        for key, value in self._values.items():
            if key not in self._read and key not in INERT_KEYS and value is not None:
                raise UnsupportedModel(
                    f"{self._where}: {self._path}{_short_key(key)} is {_short(value)}, a key that nothing reads in a "
                    f"{self.architecture}; it may change what the model computes: delete it if you know it does not"
                )
        for child in self._children.values():
            child.refuse_unread()

    # ---- errors

    def error(self, key: str, found: object, expected: str) -> ConfigError:
        return ConfigError(self._unexpected(key, found, expected))

    def unsupported(self, key: str, found: object, expected: str) -> UnsupportedModel:
        """For a value that makes sense, but asks for what is not implemented."""
        return UnsupportedModel(self._unexpected(key, found, expected))

    def _unexpected(self, key: str, found: object, expected: str) -> str:
        return f"{self._where}: {self._path}{_short_key(key)} is {_short(found)}, expected {expected}"

    def _missing(self, keys: tuple[str, ...]) -> ConfigError:
        return ConfigError(f"{self._where}: no {self._path}{' or '.join(keys)}, which {self.architecture} needs")

    # ---- reading

    def _find(self, keys: tuple[str, ...]) -> tuple[str, object]:
        """(key, value) of the first of `keys` that has a value; else of the first that is null; else _ABSENT."""
        self._read.update(keys)
        present = [key for key in keys if key in self._values]
        valued = [key for key in present if self._values[key] is not None]
        for key in valued or present:
            return key, self._values[key]
        return keys[0], _ABSENT

    def _required(self, keys: tuple[str, ...], default: T | None, parse: Callable[[str, object], T]) -> T:
        key, value = self._find(keys)
        if value is not _ABSENT and value is not None:
            return parse(key, value)
        if default is None:
            raise self._missing(keys)
        return default

    def _optional(self, keys: tuple[str, ...], default: T | None, parse: Callable[[str, object], T]) -> T | None:
        key, value = self._find(keys)
        if value is _ABSENT:
            return default
        return None if value is None else parse(key, value)

    def _as_count(self, key: str, value: object, least: int, most: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.error(key, value, f"a whole number from {least} to {most}")
        return value

    def _as_real(self, key: str, value: object) -> float:
        low, high = REALS
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self.error(key, value, f"a number from {low} to {high}")
        return float(value)

    def _as_flag(self, key: str, value: object) -> bool:
        if value is not True and value is not False and not (isinstance(value, int) and value in (0, 1)):
            raise self.error(key, value, "true or false")
        return bool(value)

    def _as_text(self, key: str, value: object) -> str:
        if not isinstance(value, str):
            raise self.error(key, value, "a string")
        return value

    def _as_list(self, key: str, value: object, parse: Callable[[str, object], T]) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise self.error(key, value, "a list")
        return tuple(parse(f"{key}[{i}]", item) for i, item in enumerate(value))


def _short(value: object) -> str:
    """One short line that shows a JSON value."""
    match value:
        case dict():
            return "an object"
        case list():
            return f"a list of {len(value)}"
        case int() if abs(value) > 10**20:
            return "a very large number"
        case str() if len(value) > 60:
            return f"{value[:57]!r}..."
        case _:
            return repr(value)


def _short_key(key: str) -> str:
    return key if key.isprintable() and len(key) <= 60 else _short(key)
