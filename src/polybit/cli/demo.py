"""`polybit demo`: the whole way once, with a small real model: fetch, convert, talk. Finished parts are kept."""

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from polybit import env
from polybit.cli.console import note, results
from polybit.cli.convert import run_conversion
from polybit.cli.demo_model import NAME, fetch_gguf
from polybit.cli.generate import print_stream
from polybit.cli.loading import load_engine
from polybit.format import gguf
from polybit.model.options import LoadOptions
from polybit.quantizer.options import ConvertOptions

QUESTION = "What is the capital of France? Answer in one sentence."


def demo(
    bits: Annotated[float, typer.Option("--bits", "-b", help="Average bits per weight of the result.")] = 4.0,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where everything goes.", show_default="polybit's cache folder")
    ] = None,
) -> None:
    """Fetch a small real model, convert it to EXL2, ask it a question, and say where everything is."""
    folder = folder or env.cache_dir() / "demo"
    source = export_once(fetch_gguf(folder), folder / NAME)
    quantized = convert_once(source, folder / f"{NAME}-{bits:g}bpw", bits)
    note(f"asking: {QUESTION}")
    engine = load_engine(quantized, LoadOptions())
    print_stream(engine.stream_chat([{"role": "user", "content": QUESTION}], temperature=0.0, max_tokens=48))
    results.print(closing(source, quantized))


def export_once(gguf_file: Path, target: Path) -> Path:
    """The GGUF as an ordinary model folder. A folder that is there is complete: it gets its name last."""
    if not target.is_dir():
        note(f"unpacking {gguf_file.name} to 16 bits a weight")
        partial = target.with_name(f".{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        gguf.export(gguf_file, partial)
        partial.rename(target)
    return target


def convert_once(source: Path, target: Path, bits: float) -> Path:
    """Convert unless it was done; a conversion that was interrupted goes on."""
    if not (target / "config.json").is_file():
        run_conversion(source, target, ConvertOptions(), [bits])
    return target


def closing(source: Path, quantized: Path) -> str:
    """Where everything is, and what to try next."""
    program = "polybit" if shutil.which("polybit") else str(Path(sys.executable).with_name("polybit"))
    return f"""
Everything is here:
  original, 16 bits a weight   {source}
  EXL2                         {quantized}

Try next:
  {program} chat {quantized}
  {program} inspect {quantized}
  {program} convert {source} another-folder -b 3.0
  {program} eval {quantized} --text some-text.txt --reference {source} --rows 20 --length 512"""
