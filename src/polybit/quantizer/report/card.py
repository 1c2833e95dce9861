"""The model card: README.md of the converted folder, as the Hub reads and shows it."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from polybit.amounts import gigabytes
from polybit.quantizer.report.findings import Findings
from polybit.quantizer.tested import SelfTest

CARD = "README.md"
CARRIED = ("license", "license_name", "license_link", "language", "pipeline_tag")  # as the source's card has them

RUN = """## How to run it

`MODEL` stands for this folder, or for this repository's id.

With polybit, on a processor or a graphics card, from the command line or from Python:

```
polybit chat MODEL
```

```python
import polybit

engine = polybit.load("MODEL")
print(engine.generate("Once upon a time", max_tokens=64).text)
```

With the API of exllamav2, which reads the same files (polybit brings a module of that name, too):

```python
from exllamav2 import ExLlamaV2, ExLlamaV2Cache, ExLlamaV2Config, ExLlamaV2Tokenizer
from exllamav2.generator import ExLlamaV2DynamicGenerator

config = ExLlamaV2Config("MODEL")  # a folder
model = ExLlamaV2(config)
cache = ExLlamaV2Cache(model, max_seq_len=4096, lazy=True)
model.load_autosplit(cache)
generator = ExLlamaV2DynamicGenerator(model, cache, ExLlamaV2Tokenizer(config))
print(generator.generate(prompt="Once upon a time", max_new_tokens=64))
```
"""


def read_card(folder: Path) -> str:
    """The folder's card, or nothing where there is none that is text."""
    try:
        return (folder / CARD).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def card(findings: Findings, source_card: str, page: str, picture: str | None) -> str:
    """The text of a card beside the files `page` and `picture`; `source_card` is the source's own, maybe empty."""
    from huggingface_hub import ModelCardData  # as in format/hub.py

    metadata, words = _split(source_card)
    front = {key: metadata[key] for key in CARRIED if key in metadata}
    if findings.base_model is not None:
        front |= {"base_model": findings.base_model, "base_model_relation": "quantized"}
    front |= {"library_name": "polybit", "tags": ["exl2", "quantized", "polybit"]}
    body = _body(findings, metadata, words, page, picture)
    return "\n".join(("---", ModelCardData(**front).to_yaml(), "---", "", *body)) + "\n"


def _split(text: str) -> tuple[Mapping[str, Any], str]:
    """A card's metadata and its words; no metadata where it has none that can be read."""
    from huggingface_hub import ModelCard

    if not text.startswith("---"):
        return {}, text
    try:
        found = ModelCard(text, ignore_metadata_errors=True)
    except Exception:  # noqa: BLE001 - foreign text, and the library raises nothing specific
        return {}, ""
    return vars(found.data), found.text


def _body(findings: Findings, metadata: Mapping[str, Any], words: str, page: str, picture: str | None) -> Iterator[str]:
    yield f"# {findings.title}\n"
    base = findings.base_model
    origin = findings.name if base is None else f"[{base}](https://huggingface.co/{base})"
    yield f"{origin}, quantized to EXL2 by polybit {findings.version}.\n"
    yield "## What it costs\n"
    yield "| | source | this model |\n|---|---|---|"
    yield from (f"| {name} | {was} | {now} |" for name, was, now in _figures(findings))
    yield f"\n{_how_measured(findings.test)}\n"
    if picture is not None:
        yield f"![Bits and errors, matrix by matrix]({picture})\n"
    yield f"`{page}`, a file of its own beside this one, has every matrix, the calibration text and the settings.\n"
    yield RUN
    yield "## How it was made\n"
    yield from _making(findings)
    yield f"\n## Licence\n\n{_licence(metadata)}"
    if words.strip():
        yield f"\n## The source's own card\n\n{words.strip()}"


def _figures(findings: Findings) -> Iterator[tuple[str, str, str]]:
    yield "bits a weight", "16", f"**{findings.bits:.3f}** (head {findings.head_bits:.2f})"
    yield "weights on disk", gigabytes(findings.source_bytes), gigabytes(findings.result_bytes)
    test = findings.test
    if test is not None and math.isfinite(test.nats):
        error = "" if test.score.kl_error is None else f" ± {test.score.kl_error:.4f}"
        yield "KL divergence from the source, nats", "0", f"**{test.nats:.4f}**{error}"
        yield "perplexity", f"{test.source_perplexity:.2f}", f"{test.score.perplexity:.2f}"
        yield "same favourite token", "100 %", f"{test.score.top1 or 0.0:.1%}"


def _how_measured(test: SelfTest | None) -> str:
    if test is None:
        return "It was converted without a self-test, so its quality was not measured."
    return (
        f"Measured by the conversion's self-test on {test.score.tokens:,} tokens that are no part of the calibration: "
        "a check, not a benchmark. For figures to compare, run `polybit eval` on text of your own."
    )


def _making(findings: Findings) -> Iterator[str]:
    record = findings.calibration
    yield from (f"- {name}: {value}" for name, value in findings.settings.items())
    yield f"- calibration: {record.get('dataset')}, {record.get('rows')} rows of {record.get('length')} tokens"
    yield f"- SHA-256 of the calibration tokens: `{record.get('sha256')}`"


def _licence(metadata: Mapping[str, Any]) -> str:
    if "license" not in metadata:
        return "That of the source model: see there. Quantizing changes nothing about it."
    name, link = str(metadata.get("license_name", metadata["license"])), metadata.get("license_link")
    named = name if link is None else f"[{name}]({link})"
    return f"{named}, as the source model's card has it. Quantizing changes nothing about it."
