"""Write docs/models.md from the registry of architectures.

python docs/write_models.py          rewrite the page
python docs/write_models.py --check  exit 1 if it is not current
"""

import sys
from pathlib import Path

from polybit.arch import SUPPORTED, UNSUPPORTED

PAGE = Path(__file__).parent / "models.md"

INTRODUCTION = """# Models

Written by `docs/write_models.py` from the registry in [arch/](../src/polybit/arch). The name is what a model's
`config.json` says under `architectures`.
"""


def page() -> str:
    supported = sorted((name, architecture.note) for name, architecture in SUPPORTED.items())
    refused = sorted(UNSUPPORTED.items())
    return "\n".join(
        [
            INTRODUCTION,
            *table("Supported", "what it is", supported),
            *table("Not yet", "what it would take", refused),
            "Any other name is refused, with the nearest that is supported.\n",
        ]
    )


def table(title: str, meaning: str, rows: list[tuple[str, str]]) -> list[str]:
    lines = [f"| `{name}` | {text} |" for name, text in rows]
    return [f"## {title}\n", f"| architecture | {meaning} |", "|---|---|", *lines, ""]


def main() -> None:
    if "--check" in sys.argv:
        sys.exit(not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page())
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
