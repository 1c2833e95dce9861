"""The self-test against the same figures by other ways, and what it makes of garbage."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from polybit import generator
from polybit.errors import OutOfMemory, SelfTestFailed
from polybit.format import exl2
from polybit.kernels.registry import load_backend
from polybit.kernels.rounding import choose_rounding
from polybit.model.evaluate import Score, evaluate
from polybit.model.load import load
from polybit.model.options import LoadOptions
from polybit.model.source import open_model
from polybit.modules.rope import RopeTables
from polybit.quantizer import convert as conversion
from polybit.quantizer import sample
from polybit.quantizer.convert import ConvertOptions, ConvertResult, convert
from polybit.quantizer.passes import Workbench
from polybit.quantizer.selftest import held_out_windows, refuse_garbage, self_test
from polybit.quantizer.tested import SelfTest, allowed_nats

from .conftest import Make

KEY = "model.layers.1.mlp.up_proj"
CPU = torch.device("cpu")


def options(text: Path, **changes: Any) -> ConvertOptions:
    return replace(ConvertOptions(bits=4.5, calibration=str(text), rows=3, length=64, device="cpu"), **changes)


@pytest.fixture(scope="module")
def done(tiny: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> ConvertResult:
    return convert(tiny, tmp_path_factory.mktemp("out") / "model", options(text))


@pytest.fixture(scope="module")
def passed(done: ConvertResult) -> SelfTest:
    assert done.self_test is not None
    return done.self_test


def test_the_figures_are_those_of_the_whole_models(tiny: Path, done: ConvertResult, passed: SelfTest) -> None:
    source, written = (open_model(folder, LoadOptions("cpu")) for folder in (tiny, done.folder))
    windows = held_out_windows(source)
    expected = evaluate(load(written), windows, load(source))
    assert passed.score.tokens == expected.tokens == 3 * 255
    assert passed.score.perplexity == pytest.approx(expected.perplexity, rel=1e-4)
    assert passed.score.kl == pytest.approx(expected.kl, rel=1e-2)
    assert passed.score.top1 == pytest.approx(expected.top1, abs=0.01)
    assert passed.source_perplexity == pytest.approx(evaluate(load(source), windows).perplexity, rel=1e-4)


def test_the_errors_are_of_every_matrix_and_layer(tiny: Path, done: ConvertResult, passed: SelfTest) -> None:
    """The first matrix's inputs are known: normed embeddings."""
    source, written = open_model(tiny), open_model(done.folder)
    assert set(passed.matrix_errors) == {linear.key for linear in source.spec.linears}
    assert len(passed.drift) == 2
    tensors, node = load_file(tiny / "model.safetensors"), source.spec.blocks[0].attn.q
    states = tensors["model.embed_tokens.weight"].float()[held_out_windows(source)[0, :128]]
    x = states / (states.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    x = x * tensors["model.layers.0.input_layernorm.weight"].float()
    wanted = x @ tensors[f"{node.key}.weight"].float().T
    found = x @ exl2.dequantize(exl2.read(written.checkpoint, node.key)).float()
    error = ((found - wanted).norm(dim=-1) / wanted.norm(dim=-1)).mean()
    assert passed.matrix_errors[node.key] == pytest.approx(float(error), rel=0.02)


def test_more_bits_lie_nearer(tiny: Path, text: Path, passed: SelfTest, tmp_path: Path) -> None:
    better = convert(tiny, tmp_path / "out", options(text, bits=8.2, head_bits=8)).self_test
    assert better is not None
    assert better.nats < passed.nats / 4
    assert all(better.matrix_errors[key] < error for key, error in passed.matrix_errors.items())
    assert better.drift[-1] < passed.drift[-1]


def test_the_sample_is_what_the_engine_generates(done: ConvertResult, passed: SelfTest) -> None:
    assert passed.sample is not None
    assert not passed.sample.is_chat
    engine = generator.load(done.folder, device="cpu")
    completion = engine.generate(passed.sample.prompt, temperature=0.0, max_tokens=sample.MOST_TOKENS)
    assert passed.sample.text == completion.text


def test_a_chat_model_is_asked_through_its_template(done: ConvertResult, tmp_path: Path) -> None:
    folder = shutil.copytree(done.folder, tmp_path / "chat")
    template = "{% for m in messages %}<{{ m.role }}> {{ m.content }}{% endfor %}<assistant>"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    found = sample.greedy_sample(open_model(folder), CPU)
    assert found is not None
    assert (found.is_chat, found.prompt) == (True, sample.QUESTION)
    engine = generator.load(folder, device="cpu")
    asked = f"<user> {sample.QUESTION}<assistant>"
    assert found.text == engine.generate(asked, temperature=0.0, max_tokens=sample.MOST_TOKENS).text


def test_a_model_that_does_not_fit_says_nothing(
    done: ConvertResult, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: object) -> None:
        raise OutOfMemory("it needs more")

    monkeypatch.setattr(sample, "load", refuse)
    assert sample.greedy_sample(open_model(done.folder), CPU) is None
    assert "without a sample: it needs more" in caplog.text


def test_killed_in_its_self_test_a_conversion_goes_on_there(
    tiny: Path, text: Path, done: ConvertResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "self_test", killed)
        with pytest.raises(KeyboardInterrupt):
            convert(tiny, tmp_path / "out", options(text))
    monkeypatch.delattr(conversion, "quantize_layer")
    again = convert(tiny, tmp_path / "out", options(text))
    assert again.self_test == done.self_test
    assert set(again.seconds) == set(done.seconds)
    for name in ("README.md", "output.safetensors"):
        assert (again.folder / name).read_bytes() == (done.folder / name).read_bytes()


def test_it_can_be_left_out(tiny: Path, text: Path, tmp_path: Path) -> None:
    result = convert(tiny, tmp_path / "out", options(text, self_test=False, method="gptq-v2"))
    assert result.self_test is None
    assert "test" not in result.seconds
    assert "without a self-test" in (result.folder / "report.html").read_text()


# ---- garbage


def test_wrong_scales_are_garbage_and_the_folder_is_kept(
    tiny: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model = conversion.write_model

    def write(source: Any, job: Any, target: Path, *rest: Any) -> None:
        write_model(source, job, target, *rest)
        spoil(target, f"{KEY}.q_scale_max", lambda scales: scales * 40)

    monkeypatch.setattr(conversion, "write_model", write)
    out = tmp_path / "out"
    with pytest.raises(SelfTestFailed, match=rf"^self-test: .*nats from its source, expected .*{KEY} ") as caught:
        convert(tiny, out, options(text))
    assert "\n" not in str(caught.value)
    assert (out / "config.json").exists()
    assert "Self-test failed" in (out / "report.html").read_text()
    assert not (out / "README.md").exists()
    assert not (out / ".polybit-job").exists()


def spoil(folder: Path, name: str, change: Callable[[Tensor], Tensor]) -> None:
    path = folder / "output.safetensors"
    tensors = load_file(path)
    tensors[name] = change(tensors[name])
    save_file(tensors, path)


def self_tested(source: Path, folder: Path) -> SelfTest:
    opened = open_model(source)
    ropes = RopeTables(opened.spec.max_seq_len, CPU)
    bench = Workbench(opened, ropes, load_backend("reference"), choose_rounding(CPU), CPU, ConvertOptions().how)
    return self_test(bench, folder, 4.5, lambda done, total: None)


def test_what_is_not_a_number_names_the_layer(tiny: Path, done: ConvertResult, tmp_path: Path) -> None:
    folder = shutil.copytree(done.folder, tmp_path / "out")
    spoil(folder, "model.layers.1.input_layernorm.weight", lambda weight: weight * math.nan)
    found = self_tested(tiny, folder)
    assert found.fault == "computes NaN or infinity, first in layer 1"
    assert math.isfinite(found.drift[0])
    with pytest.raises(SelfTestFailed, match="first in layer 1"):
        refuse_garbage(found, folder)


def test_a_model_that_cannot_be_read_back_has_failed(tiny: Path, done: ConvertResult, tmp_path: Path) -> None:
    folder = shutil.copytree(done.folder, tmp_path / "out")
    spoil(folder, f"{KEY}.q_scale_max", lambda scales: scales * math.inf)
    with pytest.raises(SelfTestFailed, match=rf"cannot be read back: {KEY}.*not finite"):
        self_tested(tiny, folder)


def verdict(kl: float = 0.1, perplexity: float = 12.0, drift: tuple[float, ...] = (0.1,)) -> str | None:
    score = Score(perplexity, 100, kl, None, 0.9)
    return SelfTest(score, 10.0, drift, {"a": 0.1, "b": math.nan}, 0.5, None).fault


def test_what_is_garbage() -> None:
    assert verdict() is None
    assert "0.60 nats from its source, expected at most 0.50" in str(verdict(kl=0.6))
    assert "perplexity 20.0, expected at most 16.5" in str(verdict(perplexity=20.0))
    assert "first in layer 1" in str(verdict(drift=(0.1, math.inf)))
    assert "logits" in str(verdict(kl=math.nan))


def test_an_error_that_is_no_number_is_the_worst() -> None:
    test = SelfTest(Score(1.0, 1, 0.0, None, 1.0), 1.0, (), {"a": 7.0, "b": math.nan, "c": 0.1}, 0.5, None)
    assert test.worst == "b"


@pytest.mark.parametrize(("bits", "nats"), [(2.0, 3.0), (2.5, 3.0), (3.0, 2.0), (4.0, 0.5), (4.5, 0.25), (8.0, 0.25)])
def test_fewer_bits_may_cost_more(bits: float, nats: float) -> None:
    assert allowed_nats(bits) == pytest.approx(nats)


def test_windows_hold_tokens_of_the_vocabulary_and_no_more_than_the_context(make_model: Make) -> None:
    windows = held_out_windows(open_model(make_model(vocab_size=200, max_position_embeddings=32)))
    assert windows.shape == (3, 32)
    assert int(windows.max()) < 200
