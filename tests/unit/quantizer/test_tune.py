"""Tuning after rounding: what it changes and what it leaves, its gradient, and that predictions come nearer."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from polybit.kernels import reference
from polybit.kernels.rounding import choose_rounding
from polybit.model.evaluate import evaluate
from polybit.model.load import load
from polybit.model.options import LoadOptions
from polybit.model.source import open_model
from polybit.modules.rope import RopeTables
from polybit.quantizer import convert as conversion
from polybit.quantizer import job, tunable_model, tune
from polybit.quantizer.convert import ConvertOptions, ConvertProgress, convert
from polybit.quantizer.job import Job, Progress
from polybit.quantizer.method import METHODS
from polybit.quantizer.passes import Workbench
from polybit.quantizer.tunable_model import TunableModel
from polybit.text.tokenizer import Tokenizer

from .conftest import Make

ROWS, LENGTH = 3, 64
CPU = torch.device("cpu")
EXPERTS = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "experts": {**EXPERTS, "num_experts_per_tok": 2},
    "all experts": {**EXPERTS, "num_experts_per_tok": 4},
    "parallel": {
        "architectures": ["CohereForCausalLM"],
        "model_type": "cohere",
        "layer_norm_eps": 1e-5,
        "logit_scale": 0.25,
        "tie_word_embeddings": True,
    },
    "biases": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
    "offsets": {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": 32,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    },
}
Kept = Callable[[str], tuple[Path, Job]]


def options(text: Path, **changes: Any) -> ConvertOptions:
    small = ConvertOptions(bits=3.5, calibration=str(text), rows=ROWS, length=LENGTH, device="cpu", tune=True)
    return replace(small, **changes)


def calibration(source: Path, text: Path) -> Tensor:
    ids = Tokenizer.open(source).encode(text.read_text())
    return torch.tensor(ids[: ROWS * LENGTH]).view(ROWS, LENGTH)


def divergence(folder: Path, source: Path, tokens: Tensor) -> float:
    found, reference_model = (load(open_model(path, LoadOptions(device="cpu"))) for path in (folder, source))
    kl = evaluate(found, tokens, reference_model).kl
    assert kl is not None
    return kl


@pytest.fixture(autouse=True)
def larger_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random models diverge so little that their steps, by the root of that, would get nowhere in a few."""
    monkeypatch.setattr(tune, "RATE", 10 * tune.RATE)


@pytest.fixture(scope="module")
def kept(make_model: Make, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """kept(family) -> a source, and the job of its conversion, interrupted before tuning."""
    made = dict[str, tuple[Path, Job]]()

    def make(family: str) -> tuple[Path, Job]:
        if family not in made:
            source, out = make_model(**FAMILIES[family]), tmp_path_factory.mktemp("job") / "out"
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(conversion.Conversion, "tune", _stop)
                with pytest.raises(KeyboardInterrupt):
                    convert(source, out, options(text))
            made[family] = source, Job(out / ".polybit-job", {})
        return made[family]

    return make


def _stop(_: object) -> None:
    raise KeyboardInterrupt


def tunable(source_folder: Path, kept_job: Job) -> TunableModel:
    source = open_model(source_folder)
    ropes = RopeTables(source.spec.max_seq_len, CPU)
    bench = Workbench(source, ropes, reference, choose_rounding(CPU), CPU, METHODS["gptq-loss"])
    return TunableModel(bench, kept_job)


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"experts"}))  # whose choice jumps
def test_the_gradient_is_the_slope_of_the_divergence(family: str, kept: Kept, text: Path) -> None:
    source, kept_job = kept(family)
    with torch.no_grad():
        model = tunable(source, kept_job)
        given = model._bench.embed(calibration(source, text)[1:2])
        row, wanted = given[0], unquantized(kept_job, model)[1]
        start = model.values
        _, gradient = model.gradient(row, wanted)
        aside, found = 0, dict[str, tuple[float, float]]()
        for name, leaf in model.weights.leaves.items():
            part = slice(aside, aside := aside + leaf.value.numel())
            off, sides = torch.zeros_like(start), []
            off[part] = gradient[part] / gradient[part].norm().clamp_min(1e-12) * 2e-3
            for sign in (1, -1):
                model.load(start + sign * off * model.sizes)
                sides.append(model.gradient(row, wanted)[0])
            found[name] = (sides[0] - sides[1], 2 * float(off @ gradient))
    assert aside == len(start)
    largest = max(abs(slope) for _, slope in found.values())
    for name, (seen, told) in found.items():
        assert seen == pytest.approx(told, rel=0.1, abs=0.02 * largest), name


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"all experts"}))
def test_the_divergence_falls(family: str, kept: Kept, text: Path, tmp_path: Path) -> None:
    source, kept_job = kept(family)
    copied = Job(shutil.copytree(kept_job.folder, tmp_path / "job"), {}, Progress("tune"))
    with torch.no_grad():
        model, tokens = tunable(source, copied), calibration(source, text)
        wanted = unquantized(copied, model)
        tuned = tune.tune(model._bench, copied, tokens, lambda done, total: None)
        found = model.weights.stored()
        given = model._bench.embed(tokens)
        before = mean_divergence(model, given, wanted)
        model.load(copied.last_states("tune", tune.EPOCHS * ROWS)[0])
        assert mean_divergence(model, given, wanted) < 0.95 * before
    assert tuned.keys() == found.keys()
    assert all(tuned[name].shape == found[name].shape and tuned[name].isfinite().all() for name in found)
    unchanged = [name for name in found if torch.equal(tuned[name], found[name])]
    assert len(unchanged) < 0.1 * len(found)  # a maximum of a matrix of one group may end within its fp16


def test_steps_are_in_proportion_to_what_is_left() -> None:
    state, gradient, sizes = (
        torch.stack([torch.ones(3), *torch.zeros(2, 3)]),
        torch.tensor([1.0, -2, 0.5]),
        torch.ones(3),
    )
    large, small, none = (
        1 - tune.descend(state, gradient, divergence, sizes, 5, 9)[0] for divergence in (0.16, 0.01, -1e-9)
    )
    torch.testing.assert_close(large, 4 * small, rtol=1e-3, atol=0)
    assert (small.sign() == gradient.sign()).all()
    assert not none.any()


def unquantized(job: Job, model: TunableModel) -> Tensor:
    """What the unquantized layers made of the calibration rows."""
    return job.last_states("quantize", len(model._bench.source.spec.blocks))[1]


def mean_divergence(model: TunableModel, given: Tensor, wanted: Tensor) -> float:
    return sum(model.gradient(*row)[0] for row in zip(given, wanted, strict=True)) / len(given)


def test_the_file_predicts_nearer_and_nothing_packed_changes(tiny: Path, text: Path, tmp_path: Path) -> None:
    source, tokens = tiny, calibration(tiny, text)
    before, after = (
        convert(source, tmp_path / f"{tuned}", options(text, tune=tuned)).folder for tuned in (False, True)
    )
    # Nine steps on a random model; what drift did, which tuning would mend first, rounding has made up for before.
    assert divergence(after, source, tokens) < 0.97 * divergence(before, source, tokens)
    plain, tuned = (load_file(folder / "output.safetensors") for folder in (before, after))
    assert {name: (x.dtype, x.shape) for name, x in plain.items()} == {
        name: (x.dtype, x.shape) for name, x in tuned.items()
    }
    changed = {name for name in plain if not torch.equal(plain[name], tuned[name])}
    assert changed == {name for name in plain if name.endswith(".q_scale_max") or "norm" in name}


def test_same_bytes_after_kills_at_any_step(
    tiny: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = convert(tiny, tmp_path / "whole", options(text)).folder
    monkeypatch.setattr(job, "CHECKPOINT_SECONDS", 0.0)
    left = kills = 0

    def report(event: ConvertProgress) -> None:
        nonlocal left
        if event.stage == "tune":
            left -= 1
            if left < 0:
                raise KeyboardInterrupt

    while True:
        left = 1  # a step
        try:
            pieces = convert(tiny, tmp_path / "pieces", options(text), report).folder
            break
        except KeyboardInterrupt:
            kills += 1
    assert kills > 2
    for name in ("output.safetensors", "config.json"):
        assert (pieces / name).read_bytes() == (whole / name).read_bytes()


def test_a_model_too_large_for_memory_is_tuned_layer_by_layer(
    tiny: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = convert(tiny, tmp_path / "whole", options(text)).folder
    opened, build = list[int](), tunable_model.build_block
    monkeypatch.setattr(tunable_model, "free_bytes", lambda device: 0)
    monkeypatch.setattr(tunable_model, "build_block", lambda *args: opened.append(1) or build(*args))
    parts = convert(tiny, tmp_path / "parts", options(text)).folder
    num_steps = tune.EPOCHS * ROWS
    assert len(opened) == 2 * (1 + 2 * num_steps)  # of two layers: once for their shapes, then forward and back
    assert (parts / "output.safetensors").read_bytes() == (whole / "output.safetensors").read_bytes()
