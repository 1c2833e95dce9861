"""`polybit eval`: perplexity on a text, and the distance to a reference model."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table
from torch import Tensor

from polybit.cli.console import progress, results
from polybit.cli.loading import load_model
from polybit.cli.shared_options import ModelName, loading
from polybit.errors import ConfigError, RequestError
from polybit.format.files import atomic_write_json
from polybit.kernels.pages import FULL
from polybit.model.evaluate import Score, cut_windows
from polybit.model.evaluate import evaluate as score_model
from polybit.model.options import LoadOptions
from polybit.model.source import ModelSource, open_model
from polybit.text import Tokenizer

WINDOW = 2048  # tokens


@loading
def evaluate(
    model: ModelName,
    options: LoadOptions,
    text: Annotated[Path, typer.Option("--text", help="UTF-8 text to judge it on.", show_default=False)],
    reference: Annotated[
        str | None, typer.Option("--reference", help="Model to compare with, unquantized as a rule.")
    ] = None,
    rows: Annotated[
        int | None, typer.Option("--rows", min=1, help="Windows of text to use.", show_default="the whole text")
    ] = None,
    skip: Annotated[
        int, typer.Option("--skip", min=0, help="Windows to leave out first: a text's start may have been used before.")
    ] = 0,
    length: Annotated[
        int | None,
        typer.Option(
            "--length", min=2, help="Tokens a window.", show_default="2048, or the model's context if shorter"
        ),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Measure perplexity on a text and, with --reference, how far the predictions moved.

    The text is cut into windows that do not overlap, each judged by itself. Where the model needs a BOS token, each
    window begins with one. --cache holds for the model alone: the reference's keys and values stay as they are.
    """
    source = open_model(model, options)
    compared = None if reference is None else open_model(reference, replace(options, cache=str(FULL)))
    context = min(each.spec.max_seq_len for each in (source, compared) if each is not None)
    windows = tokenize(source, read_text(text), length or min(WINDOW, context), rows, skip)
    judged, expected = load_model(source), None if compared is None else load_model(compared)
    with progress("evaluating") as advance:
        score = score_model(judged, windows, expected, advance)
    results.print(score_table(score))
    if json_file is not None:
        atomic_write_json(json_file, asdict(score))


def read_text(path: Path) -> str:
    """The file as it is: line ends are part of the text."""
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not UTF-8 at byte {error.start}; save it as UTF-8 text") from None


def tokenize(source: ModelSource, text: str, length: int, rows: int | None, skip: int) -> Tensor:
    """Windows [rows, length] of the text, after `skip` others."""
    tokenizer, needs_bos = Tokenizer.open(source.folder), source.spec.needs_bos
    if needs_bos and tokenizer.bos_id is None:
        raise ConfigError(f"{source.spec.architecture} needs a BOS token, but the files of {source.folder} name none")
    bos = tokenizer.bos_id if needs_bos else None
    return cut_windows(torch.tensor(tokenizer.encode(text)), length, rows, bos, skip)


def score_table(score: Score) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_row("perplexity", f"{score.perplexity:.4f}")
    table.add_row("tokens", f"{score.tokens:,}")
    if score.kl is not None and score.top1 is not None:
        error = "" if score.kl_error is None else f" ± {score.kl_error:.5f}"
        table.add_row("KL to reference", f"{score.kl:.5f}{error}")
        table.add_row("same favourite", f"{score.top1:.2%}")
    return table
