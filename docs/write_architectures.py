"""Write docs/architectures.md from the registry.

python docs/write_architectures.py          rewrite the page
python docs/write_architectures.py --check  exit 1 if it is not current
"""

import sys
from collections.abc import Mapping
from pathlib import Path

from polybit.arch import SUPPORTED, UNSUPPORTED

PAGE = Path(__file__).parent / "architectures.md"

TEXT = """# Architectures

A model's architecture is the name under `architectures` in its `config.json`. polybit converts and runs those of the
first table. The tests compare each with transformers on a tiny random model: tensor names, logits, greedy tokens. Of
models that also see, the text part runs, and a conversion copies the other tensors as they are.

| architecture | models, and what is special |
|---|---|
{supported}

Anything else is refused, with the nearest supported name. A key of `config.json` that no reader knows refuses the model
too, because it may change what the model computes; if you know that it does not, delete it from the file.

RoPE scalings: linear, dynamic NTK, llama3, YaRN, LongRoPE (`su`), and the text part of multimodal rope. Dynamic NTK and
LongRoPE choose their frequencies when a model is loaded, by `max_seq_len`: load with the context you need, not more.

## Known and not supported

| architecture | why |
|---|---|
{unsupported}
"""


def page() -> str:
    notes = {name: architecture.note for name, architecture in SUPPORTED.items()}
    return TEXT.format(supported=rows(notes), unsupported=rows(UNSUPPORTED))


def rows(notes: Mapping[str, str]) -> str:
    return "\n".join(f"| `{name}` | {notes[name]} |" for name in sorted(notes))


def main() -> int:
    if "--check" not in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.read_text(encoding="utf-8") != page():
        print(f"{PAGE} is not current: run python docs/write_architectures.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
