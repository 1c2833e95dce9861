"""An answer that follows a JSON schema: pip install 'polybit[structured]'"""

import json
import sys

import polybit

engine = polybit.load(sys.argv[1])
schema = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}
answer = engine.generate("Apples, as JSON:", json_schema=schema, max_tokens=400, seed=1)
print("read as JSON:", json.loads(answer.text))
