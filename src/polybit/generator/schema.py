"""A JSON schema as text, whichever way it is given."""

import json
from typing import Any

from polybit.errors import RequestError


def schema_text(schema: Any) -> str:
    """Text is taken as it is, a mapping written out, a pydantic model asked for its own; RequestError for others.

    A pydantic model that does not say what it does with further properties ignores them: so none are written.
    """
    if hasattr(schema, "model_json_schema"):
        schema = _closed(schema.model_json_schema())
    text = schema if isinstance(schema, str) else _written(schema)
    if not isinstance(_read(text), dict | bool):
        raise RequestError(f"json_schema is {schema!r:.60}, expected a JSON object, its text, or a pydantic model")
    return text


def _closed(node: Any) -> Any:
    """Objects with listed properties have no others, unless they say so."""
    if isinstance(node, list):
        return [_closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    closed = {key: _closed(value) for key, value in node.items()}
    is_object = node.get("type") == "object" and "properties" in node
    return {"additionalProperties": False, **closed} if is_object else closed


def _written(schema: Any) -> str:
    try:
        return json.dumps(schema)
    except (TypeError, ValueError) as error:
        raise RequestError(f"json_schema is {schema!r:.60}, which cannot be written as JSON: {error}") from None


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise RequestError(f"json_schema is {text!r:.60}, which is not JSON: {error}") from None
