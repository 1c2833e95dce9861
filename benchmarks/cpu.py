"""A model on the processor: decode and prompts, beside what the memory gives, and llama.cpp in alternation.

    python benchmarks/cpu.py Some-Model-4.0bpw [--llama-cpp PYTHON GGUF] [--threads 2] [--json FILE]

PYTHON is the interpreter of an environment that has llama-cpp-python, GGUF its model's file. Both programs have their
model loaded and take turns, a round of each at a time, so that whatever else the machine does meets both; a figure is
the median of its rounds. Tokens are random, the next one is the likeliest. Decoding starts after --context tokens. The
read bandwidth is measured before the first round and after the last one. Products are checked before anything is timed.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import IO, Any

import polybit  # noqa: F401  # before torch, as the command line does: threads of OpenMP then sleep while idle

# isort: split

import psutil
import torch

from polybit.bench.ceilings import read_gb_s
from polybit.bench.check import check_products
from polybit.bench.passes import Batch
from polybit.bench.report import source_commit
from polybit.bench.subject import Request, Subject, open_subject
from polybit.bench.timing import timed
from polybit.bench.work import bits_per_weight, cache_bytes, weight_bytes
from polybit.model.device import describe
from polybit.model.footprint import token_bytes
from polybit.model.model import Model
from polybit.model.options import LoadOptions

CPU = torch.device("cpu")
PEER = Path(__file__).with_name("llama_cpp_peer.py")


@dataclass(frozen=True)
class Work:
    context: int
    tokens: int
    prompt: int
    threads: int


@dataclass(frozen=True)
class Figures:
    decode_tok_s: float
    prompt_tok_s: float
    decode_rounds: list[float]
    prompt_rounds: list[float]


Round = Callable[[], tuple[float, float]]  # seconds of decoding, seconds of a prompt


def main() -> None:
    given = arguments()
    options = LoadOptions(device="cpu", backend=given.backend, threads=given.threads)
    subject = open_subject(Request(given.folder, given.synthetic, 6, 0, options))
    checked = check_products(subject, [1, given.prompt])
    model, load_s = timed(lambda: subject.build(None), CPU)
    work = Work(given.context, given.tokens, given.prompt, torch.get_num_threads())
    print(
        f"{subject.name}: backend {subject.place.backend.NAME}, {describe(CPU)}; {checked} kinds of products are right"
    )
    read = [read_gb_s(CPU)]
    with peer(given.llama_cpp, work) as other:
        programs: dict[str, Round] = {"polybit": partial(one_round, model, work)}
        programs |= {"llama.cpp": other} if other else {}
        figures = in_turn(programs, work, given.rounds)
    read.append(read_gb_s(CPU))
    found = report(subject, model, work, figures, read) | {"load_s": load_s, "gguf": given.llama_cpp and gguf(given)}
    tell(found)
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--synthetic", help="in place of the folder, as `polybit bench` has it")
    parser.add_argument("--llama-cpp", nargs=2, metavar=("PYTHON", "GGUF"))
    parser.add_argument("--backend")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=32, help="decoded in a round")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if (given.folder is None) == (given.synthetic is None):
        parser.error("give either a folder or --synthetic")
    return given


def one_round(model: Model, work: Work) -> tuple[float, float]:
    decoding = Batch(model, 1, work.context + 1)
    decoding.fill()
    decoding.step()
    _, decode = timed(lambda: [decoding.step() for _ in range(work.tokens)], CPU)
    _, prompt = timed(Batch(model, 1, work.prompt).step, CPU)
    return decode, prompt


@contextmanager
def peer(named: tuple[str, str] | None, work: Work) -> Iterator[Round | None]:
    """llama.cpp in a process of its own, which answers each line with the seconds of a round."""
    if named is None:
        yield None
        return
    command = [named[0], str(PEER), named[1], json.dumps(asdict(work))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        asked, answers = process.stdin, process.stdout
        assert asked is not None  # both are pipes
        assert answers is not None
        yield partial(answer, process, asked, answers)
        asked.close()


def answer(process: "subprocess.Popen[str]", asked: IO[str], answers: IO[str]) -> tuple[float, float]:
    asked.write("\n")
    asked.flush()
    line = answers.readline()
    if not line:
        sys.exit(f"llama.cpp ended with status {process.wait()}; what it said stands above")
    decode, prompt = json.loads(line)
    return decode, prompt


def in_turn(programs: dict[str, Round], work: Work, rounds: int) -> dict[str, Figures]:
    """One round of each that does not count, which compiles and allocates; then `rounds` of each."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for count in range(rounds + 1):
        for name, run in programs.items():
            found = run()
            if count:
                seconds[name].append(found)
                print(
                    f"{name:10} {work.tokens / found[0]:8.1f} decode, {work.prompt / found[1]:8.1f} prompt", flush=True
                )
    return {name: figures(work, found) for name, found in seconds.items()}


def figures(work: Work, seconds: list[tuple[float, float]]) -> Figures:
    decode, prompt = [work.tokens / each for each, _ in seconds], [work.prompt / each for _, each in seconds]
    return Figures(median(decode), median(prompt), decode, prompt)


def report(subject: Subject, model: Model, work: Work, found: dict[str, Figures], read: list[float]) -> dict[str, Any]:
    held = partial(token_bytes, cache=model.cache, dtype=model.dtype)
    stored = weight_bytes(model.spec, subject.stored_bits, 1)
    step = stored + cache_bytes(model.spec, work.context, held)
    return {
        "model": subject.name,
        "bpw": bits_per_weight(model.spec, subject.stored_bits),
        "weight_mb": stored / 1e6,
        "work": asdict(work),
        "programs": {name: asdict(each) for name, each in found.items()},
        "read_gb_s": read,
        "read_fraction": step * found["polybit"].decode_tok_s / 1e9 / max(read),
        "resident_mb": psutil.Process().memory_info().rss / 1e6,
        "device": describe(CPU),
        "commit": source_commit(),
        "torch": torch.__version__,
    }


def gguf(given: argparse.Namespace) -> dict[str, Any]:
    return {"file": Path(given.llama_cpp[1]).name, "mb": Path(given.llama_cpp[1]).stat().st_size / 1e6}


def tell(found: dict[str, Any]) -> None:
    work, programs = found["work"], found["programs"]
    for name, each in programs.items():
        print(f"{name:10} {each['decode_tok_s']:8.1f} tokens/s after {work['context']} tokens, "
              f"{each['prompt_tok_s']:8.1f} in a prompt of {work['prompt']}  (medians)")  # fmt: skip
    print(f"polybit reads {found['weight_mb']:.1f} MB of weights a token, {100 * found['read_fraction']:.0f} % of "
          f"{max(found['read_gb_s']):.1f} GB/s with {work['threads']} threads")  # fmt: skip
    if "llama.cpp" in programs:
        ours, theirs = programs["polybit"], programs["llama.cpp"]
        print(f"times llama.cpp: {ours['decode_tok_s'] / theirs['decode_tok_s']:.2f} decode, "
              f"{ours['prompt_tok_s'] / theirs['prompt_tok_s']:.2f} prompt")  # fmt: skip


if __name__ == "__main__":
    main()
