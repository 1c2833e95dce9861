"""Requests served together: tokens a second, and what serving adds to the bare decode step.

    python benchmarks/batching.py --synthetic llama-8b@4.0 [--requests 1,8,64] [--answer 256] [--json FILE]
    python benchmarks/batching.py --folder Some-Model-4.0bpw --device cpu --requests 1,8

Prompts are random and begin differently; answers are greedy and as long as asked for. `bare` is a forward pass of as
many sequences with as much before them, and an argmax; `host` is a step whose model takes no time. Products are checked
before anything is timed.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from polybit.bench.check import check_products
from polybit.bench.passes import Batch
from polybit.bench.report import source_commit
from polybit.bench.subject import Request, Subject, open_subject
from polybit.bench.timing import median_seconds, synchronize
from polybit.cache import PAGE_TOKENS, KVPool, pages_for
from polybit.generator import SamplingParams
from polybit.generator.graphs import decode_graphs
from polybit.generator.runner import Runner
from polybit.generator.sequence import Sequence
from polybit.generator.serving import Serving
from polybit.generator.step_limits import step_limits
from polybit.model.device import describe
from polybit.model.model import Model
from polybit.model.options import LoadOptions
from polybit.text import Detokenizer
from polybit.text.pieces import Pieces

PIECES = Pieces(dict.fromkeys(range(1 << 18), b" word"), frozenset(), strips_lead=False)


@dataclass(frozen=True)
class Figures:
    requests: int
    tokens_per_second: float  # of all answers, from the first request to the last token, prompts included
    step_ms: float  # median of steps in which everyone gets a token
    bare_ms: float
    host_ms: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--folder")
    source.add_argument("--synthetic")
    parser.add_argument("--requests", default="1,8,64")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--answer", type=int, default=256)
    parser.add_argument("--device")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    counts = [int(count) for count in given.requests.split(",")]
    subject = open_subject(Request(given.folder, given.synthetic, 6, 0, LoadOptions(device=given.device)))
    check_products(subject, counts)
    model = subject.build(None)
    print(f"{subject.name} on {describe(model.device)}: {given.prompt} tokens in, {given.answer} out")
    rows = []
    for count in counts:
        rows.append(measure(model, count, given.prompt, given.answer))
        print("{requests:5} requests {tokens_per_second:10.1f} tokens/s   step {step_ms:8.3f} ms, bare {bare_ms:8.3f}, "
              "host {host_ms:6.3f}".format(**asdict(rows[-1])))  # fmt: skip
    if given.json is not None:
        given.json.write_text(json.dumps(report(subject, given, rows), indent=2) + "\n")


def report(subject: Subject, given: argparse.Namespace, rows: list[Figures]) -> dict[str, Any]:
    return {
        "model": subject.name,
        "device": describe(subject.place.device),
        "commit": source_commit(),
        "prompt": given.prompt,
        "answer": given.answer,
        "rows": [asdict(row) for row in rows],
    }


def measure(model: Model, count: int, prompt: int, answer: int) -> Figures:
    pool = KVPool(
        model.spec, count * pages_for(prompt + answer) * PAGE_TOKENS, model.dtype, model.block_devices, model.backend
    )
    runner = Runner(model, pool, model.spec.embedding.num_rows, decode_graphs(model, pool, wanted=True))
    serve(runner, count, prompt, 8, first=1)  # compiles, captures
    steps, seconds = serve(runner, count, prompt, answer, first=2)
    host, _ = serve(without_model(runner), count, prompt, answer, first=3)
    del runner, pool
    batch = Batch(model, count, prompt + answer // 2)
    batch.fill()
    bare = median_seconds(batch.again, model.device)
    return Figures(count, count * answer / seconds, 1e3 * median(steps), 1e3 * bare, 1e3 * median(host))


def serve(runner: Runner, count: int, prompt: int, answer: int, first: int) -> tuple[list[float], float]:
    """Seconds of each decode step, and of everything. AssertionError: not all that was asked for came."""
    serving = Serving(runner, step_limits(runner.model, max_batch=count))
    sequences = [request(runner.model, prompt, answer, first * 1000 + i) for i in range(count)]
    synchronize(runner.model.device)
    begun, steps = time.perf_counter(), list[float]()
    for sequence in sequences:
        serving.submit(sequence)
    while not serving.is_idle:
        decodes = all(sequence.num_pending == 1 and not sequence.has_ended for sequence in sequences)
        started = time.perf_counter()
        serving.step()
        if decodes:
            steps.append(time.perf_counter() - started)
    seconds = time.perf_counter() - begun
    assert all(sequence.error is None and sequence.num_generated == answer for sequence in sequences)
    assert runner.pool.book.num_held == 0
    return steps, seconds


def request(model: Model, prompt: int, answer: int, seed: int) -> Sequence:
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, model.spec.embedding.num_rows, (prompt,), generator=random).tolist()
    params = SamplingParams(temperature=0, min_p=0, max_tokens=answer, ignore_eos=True)
    return Sequence(tokens, params, frozenset(), Detokenizer(PIECES), room=answer)


def without_model(runner: Runner) -> Runner:
    """The same steps with logits that are there already."""
    rows = torch.zeros(64, runner.model.spec.embedding.num_rows, device=runner.model.device)

    def forward(tokens: Tensor, step: Any, store: Any, logits_at: Tensor) -> Tensor:
        return rows[: len(logits_at)]

    model: Any = SimpleNamespace(spec=runner.model.spec, device=runner.model.device, forward=forward)
    model.max_seq_len = runner.model.max_seq_len
    graphs: Any = SimpleNamespace(prepare=lambda step: lambda tokens: rows[: len(tokens)], max_queries=1)
    return Runner(model, runner.pool, runner.model.spec.embedding.num_rows, graphs)


if __name__ == "__main__":
    main()
