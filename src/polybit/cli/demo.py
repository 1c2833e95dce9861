"""`polybit demo`: the whole way once, with a small real model: fetch, convert, talk. Finished parts are kept."""

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from polybit import env
from polybit.bench.shapes import read_shape
from polybit.cli.console import note, results
from polybit.cli.convert import run_conversion
from polybit.cli.demo_model import NAME, SHAPE, fetch_gguf
from polybit.cli.generate import print_stream
from polybit.cli.loading import load_engine
from polybit.format import gguf
from polybit.model.options import LoadOptions
from polybit.quantizer.begin import check_reach
from polybit.quantizer.options import ConvertOptions
from polybit.quantizer.target import targets_of
from polybit.quantizer.tested import SelfTest

QUESTION = "What is the capital of France? Answer in one sentence."


def demo(
    bits: Annotated[float, typer.Option("--bits", "-b", help="Average bits per weight of the result.")] = 4.0,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where everything goes.", show_default="polybit's cache folder")
    ] = None,
) -> None:
    """Fetch a small real model, convert it to EXL2, ask it a question, and say where everything is."""
    folder = folder or env.cache_dir() / "demo"
    quantized = folder / f"{NAME}-{bits:g}bpw"
    check_reach(read_shape(SHAPE), ConvertOptions(), targets_of(quantized, [bits]))  # before anything is fetched
    source = export_once(fetch_gguf(folder), folder / NAME)
    convert_once(source, quantized, bits)
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


def convert_once(source: Path, target: Path, bits: float) -> None:
    """Convert unless it was done, and say how the self-test went; a conversion that was interrupted goes on."""
    if (target / "config.json").is_file():
        return
    (made,) = run_conversion(source, target, ConvertOptions(), [bits])
    if made.self_test is not None:
        note(verdict(made.self_test))


def verdict(test: SelfTest) -> str:
    """A self-test that was passed, in a line."""
    ours, theirs = test.score.perplexity, test.source_perplexity
    return (
        f"self-test: passed, {test.nats:.3f} nats from the original's predictions (at most {test.allowed:g} pass), "
        f"perplexity {ours:.1f} beside {theirs:.1f}"
    )


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
