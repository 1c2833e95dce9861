"""The argument and options of every command that loads a model, and the options of every one that generates."""

from collections.abc import Mapping
from typing import Annotated

import typer

from polybit.cli.flags import Command, Flag, settings
from polybit.generator.drafting import DraftOptions
from polybit.generator.params import SamplingParams
from polybit.model.options import LoadOptions

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="Folder of a model, or its id on the Hub.", show_default=False)
]

CacheTokens = Annotated[
    int | None,
    typer.Option(
        "--cache-tokens",
        "-c",
        min=1,
        help="Tokens of prompts and answers that the cache holds at once.",
        show_default="what the model reaches and memory holds, 8192 at most",
        rich_help_panel="Loading",
    ),
]

LOADING: Mapping[str, Flag] = {
    "device": Flag("One of cpu, cuda, cuda:1, mps", default="CUDA if there is one, else cpu"),
    "dtype": Flag("Type of activations: float32, float16 or bfloat16", default="float32 on cpu, else float16"),
    "backend": Flag("Kernels to compute with; `polybit doctor` lists them", default="the fastest for the device"),
    "gpu_split": Flag(
        "GiB of each GPU to use, as 10,22, or auto for all that is free",
        default="auto, unless a device is named",
    ),
    "offload": Flag("Keep layers that fit no GPU in RAM, which is slow"),
    "max_seq_len": Flag("Longest prompt and answer together, in tokens", default="the model's own"),
    "rope_scale": Flag("Stretch positions linearly by this factor, to go beyond the model's own length"),
    "rope_alpha": Flag("Stretch positions the NTK way by this alpha"),
    "rope_yarn": Flag("Stretch positions the YaRN way by this factor"),
    "unpacked": Flag(
        "Hold weights dequantized: more memory, faster with kernels that need it",
        default="with such kernels, where half of the free memory holds them",
    ),
    "threads": Flag("Threads that compute on the CPU", default="one for each physical core"),
    "cache": Flag("Keys and values: fp16 (as activations), q8, q6, q4, or bits of both, as k8v4"),
    "graphs": Flag("Generate with CUDA graphs where the model can: faster, for some memory"),
}


DRAFTING: Mapping[str, Flag] = {
    "draft": Flag("Folder or Hub id of a smaller model with the same vocabulary, which guesses tokens ahead: faster"),
    "ngram_draft": Flag("Guess tokens ahead from the text's own past: faster where it repeats itself"),
    "num_draft_tokens": Flag("Tokens to guess ahead at most"),
}


def drafting(command: Command) -> Command:
    """Turn a command's DraftOptions parameter into options."""
    return settings(DraftOptions, "Drafting", DRAFTING)(command)


def loading(command: Command) -> Command:
    """Turn a command's LoadOptions parameter into options."""
    return settings(LoadOptions, "Loading", LOADING)(command)


SAMPLING: Mapping[str, Flag] = {
    "max_tokens": Flag("Tokens to generate at most", short="-n"),
    "dry_breakers": Flag(
        "Text across which DRY sees no repetition; may be repeated", default="line break, colon, quote, asterisk"
    ),
    "temperature": Flag(short="-t"),
    "dry_breaker_tokens": Flag("Token id that is such a breaker too; may be repeated"),
    "xtc_spared": Flag("Text whose tokens XTC leaves alone, as special tokens; may be repeated", default="line break"),
    "xtc_spared_tokens": Flag("Token id that XTC leaves alone too; may be repeated"),
    "logprobs": Flag("Report each token's log probability and those of so many likeliest", default="no report"),
    "seed": Flag("Same seed, same text", default="different each time"),
    "stop": Flag("Text that ends the generation and is not part of it; may be repeated"),
    "banned_strings": Flag("Text that is never written, in any case: the model goes back; may be repeated"),
    "choices": Flag("Text of which the answer is one; may be repeated"),
    "starts_with": Flag("Text with one of which the answer begins; may be repeated"),
    "json_schema": Flag("JSON schema that the answer follows, as text"),
    "stop_tokens": Flag("Token id that ends the generation, besides the model's own; may be repeated"),
}


def sampling(command: Command) -> Command:
    """Turn a command's SamplingParams parameter into options."""
    return settings(SamplingParams, "Sampling", SAMPLING)(command)
