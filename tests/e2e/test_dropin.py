"""A script written for exllamav2 runs as it is, on a model that polybit converted."""

import os
import subprocess
import sys
from pathlib import Path

import polybit
from polybit import env
from random_model import write_random_model
from unit.text.folders import byte_level

SCRIPT = """
from exllamav2 import ExLlamaV2, ExLlamaV2Config, ExLlamaV2Cache, ExLlamaV2Tokenizer
from exllamav2.generator import ExLlamaV2DynamicGenerator
config = ExLlamaV2Config("~/quants/llama3-70b-exl2")
model = ExLlamaV2(config)
cache = ExLlamaV2Cache(model, lazy=True)
model.load_autosplit(cache)
tok = ExLlamaV2Tokenizer(config)
gen = ExLlamaV2DynamicGenerator(model=model, cache=cache, tokenizer=tok)
print(gen.generate(prompt="Write a Tailwind grid system", max_new_tokens=400))
"""
SOURCES = Path(__file__).parents[2] / "src"


def run(script: str, home: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """With `home` as the user's home, where the script looks for its model."""
    settings = {"HOME": str(home), "USERPROFILE": str(home), "PYTHONPATH": str(SOURCES), "PYTHONIOENCODING": "utf-8"}
    settings["POLYBIT_CACHE"] = str(env.cache_dir())  # of compiled kernels
    return subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | settings,
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=timeout,
    )


def test_the_script_prints_its_prompt_and_a_completion(tmp_path):
    source, text = byte_level(write_random_model(tmp_path / "source", {"vocab_size": 288})), tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 50)
    folder = tmp_path / "quants" / "llama3-70b-exl2"
    settings = {"calibration": str(text), "rows": 4, "length": 64, "measure_rows": 2, "measure_length": 64}
    polybit.convert(source, folder, bits=4.6, **settings)
    done = run(SCRIPT, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Write a Tailwind grid system")
    assert len(done.stdout) > len("Write a Tailwind grid system") + 100


def test_without_the_model_it_says_where_it_looked(tmp_path):
    done = run(SCRIPT, tmp_path)
    assert done.returncode == 1
    assert f"{tmp_path / 'quants' / 'llama3-70b-exl2'} is not a folder" in done.stderr.splitlines()[-1]
