"""Every error that polybit raises on purpose.

A message is one line: where, what was found, what was expected, what to do.

PolybitError
├── ConfigError        config.json or a tokenizer file is missing, malformed, or holds a key that nothing reads; or
│   │                  an option of loading is not one, or out of range
│   └── UnsupportedModel   the architecture, or a feature it asks for, is not implemented
├── FormatError        a weight file is missing, truncated, or holds a tensor of the wrong name, type or shape
├── CalibrationError   calibration text is missing, unreadable or too short
├── JobError           a conversion's working folder is corrupt or belongs to another job
├── SelfTestFailed     a conversion's result is garbage; its folder is kept
├── KernelError        a backend is missing, or cannot do what was asked
├── OutOfMemory        a model or a cache does not fit where it was told to go
└── RequestError       a generation request asks for something impossible
"""

import difflib
from collections.abc import Sequence


class PolybitError(Exception):
    """Base of all errors below; the command line prints it as one line and exits with code 2."""


class ConfigError(PolybitError):
    """A model folder's description (config.json, tokenizer files), or an option of loading it, cannot be used."""


class UnsupportedModel(ConfigError):
    """The architecture, or a feature that its config asks for, is not implemented."""


class FormatError(PolybitError):
    """A weight file is missing or damaged, or a tensor has the wrong name, type, shape or contents."""


class CalibrationError(PolybitError):
    """Calibration text is missing, unreadable or too short."""


class JobError(PolybitError):
    """A conversion cannot start or go on: its folder is in use, corrupt, or from another job."""


class SelfTestFailed(PolybitError):
    """A converted model is garbage; its folder is kept. The command line exits with code 3."""


class KernelError(PolybitError):
    """A kernel backend is missing or cannot do what was asked."""


class OutOfMemory(PolybitError):
    """A model or a cache does not fit; the message says what was needed and what was free."""


class RequestError(PolybitError):
    """A generation request holds a parameter out of range, or cannot be served."""


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """The end of a message about a name that is none of `known`: the nearest of them, or all."""
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
