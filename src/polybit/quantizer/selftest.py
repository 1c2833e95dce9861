"""The self-test of a conversion: the written folder is read back and compared with its source on held-out text.

Both go layer by layer, so neither has to fit into memory. The text comes with the package, and was written for it: no
model learnt it, no calibration holds it, and every machine has the same.
"""

from functools import partial
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from polybit.errors import ConfigError, FormatError, SelfTestFailed
from polybit.model.evaluate import Score, WindowScore, combine, cut_windows, score_logits
from polybit.model.model import Model
from polybit.model.source import ModelSource, open_model
from polybit.model.streamed import StreamedModel
from polybit.model.weights import Linear
from polybit.modules.step import whole_rows
from polybit.quantizer.part import OpenBlock, relative_error
from polybit.quantizer.passes import Workbench
from polybit.quantizer.probe import Probe
from polybit.quantizer.progress import Advance
from polybit.quantizer.sample import greedy_sample
from polybit.quantizer.tested import SelfTest, allowed_nats
from polybit.text.tokenizer import Tokenizer

ROWS, LENGTH = 3, 256  # enough to tell a bad model from a good one, and cheap beside any conversion
JUDGED_TOKENS = 128  # that a single matrix's error is judged on


def self_test(bench: Workbench, folder: Path, bits: float, advance: Advance) -> SelfTest:
    """Compare the model in `folder`, of `bits` bits a weight, with its source.

    SelfTestFailed: it cannot be read back. What is found otherwise, be it garbage, is for the caller to judge.
    """
    try:
        return _compare(bench, open_model(folder, bench.source.options), bits, advance)
    except (ConfigError, FormatError) as error:
        raise SelfTestFailed(f"{folder} cannot be read back: {error}") from error


def refuse_garbage(test: SelfTest, folder: Path) -> None:
    """SelfTestFailed where the test did not pass."""
    if test.fault is None:
        return
    worst = f"{test.worst} (off by {test.matrix_errors[test.worst]:.0%} for the source's own inputs)"
    raise SelfTestFailed(
        f"self-test: the model in {folder} {test.fault}; the folder is kept, and its report.html shows where the error "
        f"comes in: the largest of a matrix is that of {worst}; check that the source itself generates sense, "
        "else take more bits or other calibration text"
    )


def held_out_windows(source: ModelSource) -> Tensor:
    """[rows, length] of the held-out text in the model's tokens."""
    tokenizer, model = Tokenizer.open(source.folder), source.spec
    ids = torch.tensor(tokenizer.encode(held_out_text(), parse_special=False))
    ids = ids.where(ids < model.embedding.num_rows, 0)
    bos = tokenizer.bos_id if model.needs_bos or tokenizer.adds_bos else None
    return cut_windows(ids, min(LENGTH, model.max_seq_len), bos=bos)[:ROWS]


def held_out_text() -> str:
    return files(__package__).joinpath("held_out.txt").read_text(encoding="utf-8")


def _compare(bench: Workbench, written: ModelSource, bits: float, advance: Advance) -> SelfTest:
    windows, count = held_out_windows(bench.source), len(bench.source.spec.blocks)
    streamed = StreamedModel.of(written, bench.device)
    step, store = whole_rows(windows.shape[0], windows.shape[1], bench.device)
    shell = streamed.shell()
    wanted, found = bench.embed(windows), shell.embed(windows.flatten().to(bench.device), step)
    drift, errors = list[float](), dict[str, float]()
    for index in range(count):
        wanted, heard = _run_and_hear(bench.open(index), wanted)
        layer, matrices = streamed.block(index)
        found = layer(found, step, store)
        drift.append(relative_error(found.float().to(wanted.device).view_as(wanted), wanted))
        errors |= {key: _matrix_error(matrices[key], streamed.dtype, *pair) for key, pair in heard.items()}
        advance(index + 1, count + 1)
    source_score, score = _scores(bench, shell, windows, wanted, found.view_as(wanted))
    sample = greedy_sample(written, bench.device)
    advance(count + 1, count + 1)
    return SelfTest(score, source_score.perplexity, tuple(drift), errors, allowed_nats(bits), sample)


def _run_and_hear(block: OpenBlock, x: Tensor) -> tuple[Tensor, dict[str, tuple[Probe, Tensor]]]:
    """The source's block over x [R, L, E], and each of its matrices by key with some inputs that it got."""
    heard = dict[str, tuple[Probe, Tensor]]()

    def hear(probe: Probe, inputs: Tensor) -> None:
        if len(inputs):
            heard.setdefault(probe.node.key, (probe, inputs[:JUDGED_TOKENS].clone()))

    for probe in block.probes.values():
        probe.listener = partial(hear, probe)
    output = block.advance(x, lambda part, part_input: part(part_input))
    for probe in block.probes.values():
        probe.listener = None
    return output, heard


def _matrix_error(written: Linear, dtype: torch.dtype, probe: Probe, x: Tensor) -> float:
    """Of the written matrix's output for x [T, K]."""
    return relative_error(written(x.to(dtype)).float(), probe(x))


def _scores(bench: Workbench, shell: Model, windows: Tensor, wanted: Tensor, found: Tensor) -> tuple[Score, Score]:
    """Of the source by itself and of the written model compared with it, from the last layers' states [R, L, E]."""
    norm, head = bench.open_head()
    ours, theirs = list[WindowScore](), list[WindowScore]()
    for window, states, written_states in zip(windows, wanted, found, strict=True):
        expected = _capped(head(norm(states[:-1].to(bench.device))), bench.source.spec.head.softcap)
        theirs.append(score_logits(expected, window[1:]))
        ours.append(score_logits(shell.logits(written_states[:-1]), window[1:], expected))
    return combine(theirs, compared=False), combine(ours, compared=True)


def _capped(logits: Tensor, softcap: float | None) -> Tensor:
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)
