"""A conversation to a prompt, by the Jinja template that a model brings.

Templates come with downloaded models, so they run in a sandbox that can neither reach Python's internals nor change
their input.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from polybit.errors import ConfigError, RequestError
from polybit.text.json_object import read_object, read_text

Message = Mapping[str, Any]  # at least "role" and "content", as in {"role": "user", "content": "Hello"}


class ChatTemplate:
    """`ChatTemplate.open(folder).render([{"role": "user", "content": "Hello"}])`"""

    def __init__(self, source: str, special_names: Mapping[str, str], where: str) -> None:
        """`special_names`: "bos_token" -> "<s>" and the like. Raises ConfigError where `source` is not a template."""
        self._special_names = dict(special_names)
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(
                f"{where}: the chat template's line {error.lineno} is not valid Jinja ({error.message})"
            ) from None
        except Exception as error:  # noqa: BLE001 - Python compiles what Jinja writes, and has limits of its own
            raise ConfigError(f"{where}: the chat template cannot be compiled ({_one_line(error)})") from None

    @classmethod
    def open(cls, folder: Path, special_names: Mapping[str, str]) -> "ChatTemplate":
        """From chat_template.jinja, else from tokenizer_config.json. Raises ConfigError if neither has one."""
        path = folder / "chat_template.jinja"
        source = read_text(path)
        if source is None:
            path = folder / "tokenizer_config.json"
            source = _default_template((read_object(path) or {}).get("chat_template"))
        if source is None:
            raise ConfigError(
                f"{folder} has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json); "
                "it may be a base model: give it plain text to continue, or add a template"
            )
        return cls(source, special_names, str(path))

    def render(self, messages: Sequence[Message], /, add_generation_prompt: bool = True, **variables: Any) -> str:
        """The prompt that makes the model answer `messages`; special tokens stand in it as text.

        `variables` (tools, enable_thinking, ...) reach the template by name. Raises RequestError where the
        template refuses the messages.
        """
        check_messages(messages)
        context = self._special_names | variables
        try:
            return self._template.render(messages=messages, add_generation_prompt=add_generation_prompt, **context)
        except Exception as error:  # noqa: BLE001 - foreign code, so it may raise anything
            raise RequestError(f"the model's chat template refused the messages: {_one_line(error)}") from None


def check_messages(messages: Sequence[Message]) -> None:
    """Raises RequestError unless there is a message and each is a mapping with a role and a content."""
    if not isinstance(messages, (list, tuple)) or not messages:
        raise RequestError('messages must be a list that is not empty, like [{"role": "user", "content": "Hello"}]')
    for i, message in enumerate(messages):
        if not (isinstance(message, Mapping) and isinstance(message.get("role"), str)):
            raise RequestError(f'messages[{i}] must be a mapping with a "role" and a "content", found {message!r:.80}')
        if "content" not in message and "tool_calls" not in message:
            raise RequestError(f'messages[{i}] has no "content"')


def _default_template(entry: Any) -> str | None:
    """tokenizer_config.json holds one template, or a list of named ones."""
    if isinstance(entry, list):
        named = (item for item in entry if isinstance(item, dict) and item.get("name") == "default")
        entry = next(named, {}).get("template")
    return entry if isinstance(entry, str) else None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# ---- the environment that published templates expect


class GenerationBlocks(Extension):
    """`{% generation %}...{% endgeneration %}` marks the model's words for training; here it renders its contents."""

    tags = {"generation"}  # noqa: RUF012 - the shape that Jinja asks for

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlocks, loopcontrols], autoescape=False
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any, indent: int | None = None, separators: tuple[str, str] | None = None, sort_keys: bool = False
) -> str:
    """Plain JSON. Jinja's own filter escapes HTML, which would change the prompt."""
    return json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
