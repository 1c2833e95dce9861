"""Conversations on disk: one JSON file each, in a folder, found by name. Or anywhere, by path."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polybit.chat.conversation import Conversation, from_messages
from polybit.errors import FormatError, RequestError, did_you_mean
from polybit.format.files import atomic_write_json, unwritable

SUFFIX = ".json"
NAME = re.compile(r"\w[\w .-]*")
KEYS = {"model", "params", "messages"}


@dataclass(frozen=True)
class Saved:
    """One file. `params`: the sampling parameters that are not as by default."""

    conversation: Conversation
    params: Mapping[str, Any]
    model: str


class Chats:
    """The folder of saved conversations; it need not exist."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        return sorted(path.stem for path in self.folder.glob(f"[!.]*{SUFFIX}"))

    def path(self, name: str) -> Path:
        """Where the conversation `name` lies; a name with a slash, or that ends in .json, is a path of its own."""
        if name.endswith(SUFFIX) or os.sep in name or "/" in name:
            return Path(name).expanduser()
        if not NAME.fullmatch(name):
            raise RequestError(f"{name!r} is no name for a conversation; give letters, digits, dots, spaces or dashes")
        return self.folder / f"{name}{SUFFIX}"

    def write(self, name: str, saved: Saved) -> Path:
        """Whole or not at all. Raises FormatError where it cannot be written."""
        path = self.path(name)
        entries = {
            "model": saved.model,
            "params": dict(saved.params),
            "messages": saved.conversation.messages,
        }
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # others need not read along
        except OSError as error:
            raise unwritable(path, error) from error
        atomic_write_json(path, entries, indent=2, ascii_only=False)
        return path

    def check_free(self, name: str) -> None:
        """Raises FormatError where something else than a conversation lies, which writing would replace."""
        if self.path(name).exists():
            try:
                self.read(name)
            except FormatError as error:
                raise FormatError(f"{error}; take another name, or move that file away") from None

    def read(self, name: str) -> Saved:
        """Raises RequestError where there is none, FormatError where the file holds something else."""
        path = self.path(name)
        try:
            entries = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise RequestError(self._missing(name, path)) from None
        except (OSError, ValueError, RecursionError) as error:
            raise FormatError(f"{path} cannot be read as a conversation: {error}") from None
        try:
            return _parsed(entries)
        except RequestError as error:
            raise FormatError(f"{path} is no saved conversation: {error}") from None

    def _missing(self, name: str, path: Path) -> str:
        names = self.names()
        hint = did_you_mean(name, names) if names else "nothing was saved yet"
        return f"there is no conversation {name!r} ({path}); {hint}"


def _parsed(entries: Any) -> Saved:
    if not isinstance(entries, dict) or entries.keys() != KEYS:
        found = sorted(entries) if isinstance(entries, dict) else type(entries).__name__
        raise RequestError(f"it holds {found!r:.80}, expected {', '.join(sorted(KEYS))}")
    model, params, messages = entries["model"], entries["params"], entries["messages"]
    if not (isinstance(model, str) and isinstance(params, dict) and isinstance(messages, list)):
        raise RequestError("model must be text, params an object, messages a list")
    if not all(isinstance(message, dict) for message in messages):
        raise RequestError("a message must be an object with role and content")
    return Saved(from_messages(messages), params, model)
