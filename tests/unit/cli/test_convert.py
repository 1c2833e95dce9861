"""`polybit convert`, and `convert.py` with the original's flags, on a tiny model."""

import json
import logging
from pathlib import Path

import pytest

from polybit.cli import convert as convert_module
from polybit.cli import original_convert
from polybit.cli.guard import guarded
from polybit.cli.main import run
from polybit.errors import JobError
from polybit.quantizer import convert as conversion
from polybit.quantizer import tested
from polybit.quantizer.convert import Conversion
from polybit.quantizer.folders import WORK_FOLDER
from polybit.quantizer.options import ConvertOptions, ConvertProgress
from unit.cli.conftest import write_speaking_model
from unit.cli.program import Polybit

TESTED = ("--rows", "2", "--length", "64", "--measure-rows", "1", "--measure-length", "64", "--device", "cpu")
QUICK = (*TESTED, "--no-self-test")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 20)
    return path


@pytest.fixture(scope="module")
def converted(model_folder: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "tiny-5.0bpw"
    assert run(["convert", str(model_folder), str(out), "-b", "5", "-c", str(text), *QUICK]) == 0
    return out


def test_the_result_generates(polybit_cli: Polybit, converted: Path) -> None:
    result = polybit_cli("-q", "generate", converted, "-p", "hello", "-n", "4", "--ignore-eos", "--device", "cpu")
    assert (result.code, result.err) == (0, "")


def test_inspect_shows_the_bits_that_were_asked_for(polybit_cli: Polybit, converted: Path) -> None:
    report = json.loads(polybit_cli("inspect", converted, "--json", "--device", "cpu").out)
    assert 4.5 < report["decoder_bpw"] <= 5.0
    assert report["head_bpw"] > 6.0


def test_the_self_test_is_told_and_its_sample_printed(
    polybit_cli: Polybit, model_folder: Path, text: Path, tmp_path: Path
) -> None:
    result = polybit_cli("convert", model_folder, tmp_path / "out", "-b", "5", "-c", text, *TESTED)
    assert result.code == 0
    for told in ("KL to the source", "perplexity", "same favourite", "What is the capital of France?", "it says"):
        assert told in result.out


def test_garbage_has_an_exit_code_of_its_own(
    polybit_cli: Polybit, model_folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tested, "FEWEST_NATS", 0.0)
    monkeypatch.setattr(tested, "NATS_AT_TWO_BITS", 0.0)
    result = polybit_cli("-q", "convert", model_folder, tmp_path / "out", "-b", "5", "-c", text, *TESTED)
    assert (result.code, result.out) == (3, "")
    assert result.err.count("\n") == 1
    assert "report.html" in result.err
    assert (tmp_path / "out" / "config.json").exists()


def test_an_upload_is_checked_before_and_done_after(
    polybit_cli: Polybit, model_folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, out = list[tuple[object, ...]](), tmp_path / "out"
    monkeypatch.setattr(conversion, "check_upload", lambda *given: calls.append((*given, out.exists())))
    monkeypatch.setattr(conversion, "upload", lambda *given: calls.append(given) or "https://address")
    more = ("-b", "5", "-c", text, "--push-to-hub", "me/tiny", *QUICK)
    result = polybit_cli("convert", model_folder, out, *more)
    assert result.code == 0
    assert calls[0] == ("me/tiny", False)
    assert calls[1][:3] == (out, "me/tiny", False)
    assert "uploaded to https://address" in result.err


def test_several_models_are_not_uploaded_over_each_other(
    polybit_cli: Polybit, model_folder: Path, tmp_path: Path
) -> None:
    result = polybit_cli("convert", model_folder, tmp_path / "o", "-b", "4", "-b", "5", "--push-to-hub", "me/tiny")
    assert (result.code, (tmp_path / "o").exists()) == (2, False)
    assert "takes one model, not 2" in result.err


def test_public_without_a_repository_is_a_mistake(polybit_cli: Polybit, model_folder: Path, tmp_path: Path) -> None:
    result = polybit_cli("convert", model_folder, tmp_path / "out", "--public")
    assert (result.code, (tmp_path / "out").exists()) == (2, False)


def test_a_measurement_can_be_used_again(
    polybit_cli: Polybit, model_folder: Path, converted: Path, text: Path, tmp_path: Path
) -> None:
    measured = converted / "measurement.json"
    result = polybit_cli("convert", model_folder, tmp_path, "-b", "5", "-c", text, "--measurement", measured, *QUICK)
    assert result.code == 0
    assert "measure 1/2" not in result.err
    weights = [folder / "output.safetensors" for folder in (tmp_path, converted)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-b", "1.0"), "cannot be reached"),
        (("-b", "nan"), "nan"),
        (("-b", "12"), "12"),
        (("--head-bits", "7"), "head_bits is 7, expected one of"),
        (("--rows", "0"), "rows is 0"),
        (("--method", "magic"), "magic"),
        (("-c", "missing.txt"), "missing.txt"),
        (("--measurement", "missing.json"), "missing.json"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(
    polybit_cli: Polybit, model_folder: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "out"
    result = polybit_cli("-q", "convert", model_folder, out, *QUICK, *options)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert message in result.err
    assert not out.exists()


def test_calibration_with_too_little_text_is_refused(polybit_cli: Polybit, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("too short")
    result = polybit_cli("-q", "convert", model_folder, tmp_path / "out", "-c", tmp_path / "short.txt", *QUICK)
    assert result.code == 2
    assert "has 9 tokens" in result.err


def test_a_folder_that_is_not_empty_is_not_touched(polybit_cli: Polybit, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    result = polybit_cli("-q", "convert", model_folder, tmp_path, *QUICK)
    assert result.code == 2
    assert "not empty" in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_quantized_model_is_not_converted_again(polybit_cli: Polybit, converted: Path, tmp_path: Path) -> None:
    result = polybit_cli("-q", "convert", converted, tmp_path / "out", *QUICK)
    assert result.code == 2
    assert "quantized already" in result.err


def test_a_broken_gguf_is_refused(polybit_cli: Polybit, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(64))
    result = polybit_cli("-q", "convert", tmp_path / "model.gguf", tmp_path / "out")
    assert result.code == 2
    assert "model.gguf" in result.err
    assert not (tmp_path / "out").exists()


def test_a_gguf_that_is_not_there_is_refused(polybit_cli: Polybit, tmp_path: Path) -> None:
    result = polybit_cli("-q", "convert", tmp_path / "typo.gguf", tmp_path / "out")
    assert result.code == 2
    assert "typo.gguf is not a file; give the path of a .gguf file" in " ".join(result.err.split())


@pytest.fixture
def unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the GGUF files that were unpacked."""
    names: list[str] = []

    def export(path: Path, folder: Path) -> None:
        names.append(path.name)
        write_speaking_model(folder)

    monkeypatch.setattr(convert_module.gguf, "export", export)
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    return names


def test_a_refused_gguf_leaves_nothing(polybit_cli: Polybit, unpacked: list[str], tmp_path: Path) -> None:
    for refused in (("-b", "1.0"), ("-c", "missing.txt"), ("--head-bits", "7")):
        assert polybit_cli("convert", tmp_path / "a.gguf", tmp_path / "out", *QUICK, *refused).code == 2
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "b.gguf"]
    assert unpacked == ["a.gguf"] * 2  # head bits are refused before


def test_an_interrupted_gguf_is_unpacked_once_and_never_taken_for_another(
    polybit_cli: Polybit, unpacked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: Path, out: Path, *__: object) -> None:
        (out / WORK_FOLDER).mkdir(parents=True, exist_ok=True)
        (out / WORK_FOLDER / "job.json").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(convert_module, "convert_each", interrupted)
    for name in ("a.gguf", "a.gguf", "b.gguf"):
        assert polybit_cli("convert", tmp_path / name, tmp_path / "out", *QUICK).code == 130
    assert unpacked == ["a.gguf", "b.gguf"]


def test_an_interrupt_says_how_to_go_on(
    polybit_cli: Polybit, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(convert_module, "convert_each", interrupted)
    result = polybit_cli("convert", model_folder, tmp_path / "out")
    assert result.code == 130
    assert "run the same command again" in result.err


# ---- the original's flags


def options_for(*arguments: object) -> ConvertOptions:
    given = original_convert.parser().parse_args(["-i", "in", "-o", "work", *map(str, arguments)])
    return original_convert.options_of(given)


def test_defaults_are_the_originals() -> None:
    options = options_for()
    assert (options.bits, options.head_bits, options.shard_mb) == (4.125, 6, 8192)
    assert (options.rows, options.calibration) == (ConvertOptions().rows, None)
    with_dataset = options_for("-c", "text.parquet")
    assert (with_dataset.rows, with_dataset.measure_rows) == (100, 16)
    assert (with_dataset.length, with_dataset.measure_length) == (2048, 2048)


def test_flags_reach_the_conversion() -> None:
    options = options_for("-b", 2.4, "-hb", 8, "-cf", "final", "-c", "t", "-r", 7, "-ml", 96, "-ss", 0, "-nr", "-ra", 2)
    assert (options.bits, options.head_bits, options.rows, options.measure_length) == (2.4, 8, 7, 96)
    assert (options.shard_mb, options.resume, options.rope_alpha) == (0, False, 2.0)
    assert options.work_dir == Path("work")


def test_measuring_alone_makes_no_model() -> None:
    options = options_for("-om", "m.json")
    assert (options.measure_only, options.save_measurement) == (True, Path("m.json"))
    for other in ("-cf", "-m"):
        assert guarded(lambda other=other: original_convert.run(["-i", "a", "-o", "b", "-om", "m", other, "c"])) == 2


def test_lengths_count_without_a_dataset_but_rows_do_not() -> None:
    options = options_for("-l", 300, "-r", 7, "-mr", 3)
    assert (options.length, options.measure_length) == (300, ConvertOptions().measure_length)
    assert (options.rows, options.measure_rows) == (ConvertOptions().rows, ConvertOptions().measure_rows)


@pytest.mark.parametrize("flag", ["-res", "-fst", "-hsol=3", "-r=7", "-mr=7"])
def test_a_flag_without_effect_says_so(
    flag: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stop(*_: object) -> None:
        raise JobError("far enough")

    monkeypatch.setattr(convert_module, "convert_each", stop)
    caplog.set_level(logging.INFO)
    assert guarded(lambda: original_convert.run(["-i", "a", "-o", "b", flag])) == 2
    assert f"{flag.split('=')[0]} has no effect" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "finding"),
    [
        (("-o", "b"), "-i is missing, and b holds no unfinished job"),
        (("-o", "b", "-nr"), "-i is missing, and -nr starts over"),
        (("-i", "a"), "required: -o/--out_dir"),
        (("-i", "a", "-o", "b", "-b", "four"), "invalid float value: 'four'"),
        (("-i", "a", "-o", "b", "-x"), "unrecognized arguments: -x"),
        (("-i", "a", "-o", "b", "-hb", "7"), "head_bits is 7, expected one of 2, 3, 4, 5, 6, 8"),
        (("-i", "a", "-o", "b", "-ss", "-1"), "shard_mb is -1, expected at least 0"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    arguments: tuple[str, ...], finding: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(lambda: original_convert.run(arguments)) == 2
    said = capsys.readouterr().err
    assert finding in said
    assert said.count("\n") == 1


def test_status_lines_for_other_programs(capsys: pytest.CaptureFixture[str]) -> None:
    original_convert.print_status(ConvertProgress("quantize", 3, 12, 0.123456))
    assert capsys.readouterr().out == '[STATUS]{"stage": "quantize", "completion": 0.1235}[/STATUS]\n'


def test_the_whole_way_with_the_originals_flags(
    model_folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ("-r", "2", "-l", "64", "-mr", "1", "-ml", "64")
    folders = ("-i", str(model_folder), "-o", str(tmp_path / "work"), "-cf", str(tmp_path / "final"))
    original_convert.run([*folders, "-b", "5", "-c", str(text), "-so", *rows])
    assert (tmp_path / "final" / "config.json").exists()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[STATUS]")]
    assert json.loads(lines[-1].removeprefix("[STATUS]").removesuffix("[/STATUS]"))["completion"] == 1.0


@pytest.mark.parametrize("compiled", [(), ("-cf", "final")])
def test_a_job_goes_on_without_its_source_named(
    compiled: tuple[str, ...], model_folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = ["-r", "2", "-l", "64", "-mr", "1", "-ml", "64"]
    begin = ["-i", str(model_folder), "-o", "work", *compiled, "-b", "5", "-c", str(text), *rows]

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Conversion, "quantize", stop)
        assert guarded(lambda: original_convert.run([*begin, "-nr"])) == 130
    monkeypatch.setattr(Conversion, "go_back", stop)  # what is done is not done again
    original_convert.run(["-o", "work"])
    config = json.loads((tmp_path / (compiled or ("", "work"))[1] / "config.json").read_text())
    assert config["quantization_config"]["bits"] == 5.0
