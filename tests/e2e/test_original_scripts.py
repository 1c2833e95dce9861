"""Scripts that use exllamav2 as its own examples do, each way of using it once; they run unchanged."""

import re
import sys
from pathlib import Path

import pytest

from random_model import write_random_model
from unit.text.folders import byte_level

START = """
import sys, os, time, torch, asyncio
from exllamav2 import *
from exllamav2.generator import *
from exllamav2 import ExLlamaV2, ExLlamaV2Config, ExLlamaV2Cache, ExLlamaV2Tokenizer, Timer
config = ExLlamaV2Config(sys.argv[1])
config.arch_compat_overrides()
model = ExLlamaV2(config)
cache = ExLlamaV2Cache(model, max_seq_len = 1024, lazy = True)
model.load_autosplit(cache, progress = False)
tokenizer = ExLlamaV2Tokenizer(config)
"""
DYNAMIC = "generator = ExLlamaV2DynamicGenerator(model = model, cache = cache, tokenizer = tokenizer)\n"

SCRIPTS = {
    "one prompt and a batch, timed": (
        DYNAMIC
        + """
generator.warmup()
with Timer() as single:
    output = generator.generate(prompt = "Once upon a time,", max_new_tokens = 20, add_bos = True)
print("-- single:", output)
prompts = ["Here's how to create a powerful love potion:\\n", "For once,", "The events of the American Civil War"]
with Timer() as batched:
    outputs = generator.generate(prompt = prompts, max_new_tokens = 20, add_bos = True, seed = 1)
for i, output in enumerate(outputs): print(f"-- {i}:", output)
print(f"{20 * len(prompts) / batched.interval > 0} {single.interval > 0}")
""",
        r"-- single: Once upon a time,.+(.*\n)*-- 2: The events.+(.*\n)*True True",
    ),
    "a job streamed": (
        DYNAMIC
        + """
gen_settings = ExLlamaV2Sampler.Settings(temperature = 1.1, top_p = 0.95, token_repetition_penalty = 1.01)
gen_settings.disallow_tokens(tokenizer, [tokenizer.eos_token_id])
job = ExLlamaV2DynamicJob(
    input_ids = tokenizer.encode("Our story begins", add_bos = False),
    max_new_tokens = 20,
    stop_conditions = [tokenizer.eos_token_id, "<|end|>"],
    gen_settings = gen_settings,
    seed = 1234,
)
generator.enqueue(job)
eos = False
while not eos:
    for result in generator.iterate():
        assert result["job"] == job
        if result["stage"] != "streaming": continue
        print(result.get("text", ""), end = "")
        if result["eos"]:
            eos = True
print()
print("reason", result["eos_reason"], job.sequences[0].sequence_ids.shape[-1], len(job.full_completion) > 0)
""",
        r"reason max_new_tokens 36 True",
    ),
    "an event loop": (
        """
async def main():
    generator = ExLlamaV2DynamicGeneratorAsync(model = model, cache = cache, tokenizer = tokenizer)
    async def run_job(prompt, marker):
        job = ExLlamaV2DynamicJobAsync(generator, input_ids = tokenizer.encode(prompt), max_new_tokens = 12)
        text = ""
        async for result in job:
            text += result.get("text", "")
            if marker == "*" and result["stage"] == "streaming": await job.cancel()
        print(marker, len(text) > 0)
    await asyncio.gather(run_job("one", "#"), run_job("two", "*"), run_job("three", "+"))
    await generator.close()
asyncio.run(main())
""",
        r"([#*+] (True|False)\n){3}",
    ),
    "guidance": (
        DYNAMIC
        + """
for cfg_scale in [0.0, 0.5, 1.0, 2.0]:
    input_ids = [tokenizer.encode(p) for p in ("You are a polite assistant", "You are a rude assistant")]
    settings = ExLlamaV2Sampler.Settings(cfg_scale = cfg_scale)
    generator.enqueue(ExLlamaV2DynamicJob(input_ids, 10, gen_settings = settings, identifier = cfg_scale))
while generator.num_remaining_jobs():
    for r in generator.iterate():
        if r["stage"] == "streaming" and r["eos"]: print("cfg", r["identifier"], repr(r["full_completion"]))
""",
        r"(cfg [\d.]+ '.*'\n|cfg [\d.]+ \".*\"\n){4}",
    ),
    "a JSON-like filter of the script's own": (
        DYNAMIC
        + """
from exllamav2.generator.filters import ExLlamaV2Filter, ExLlamaV2PrefixFilter
class ExLlamaV2TokenEnforcerFilter(ExLlamaV2Filter):
    def __init__(self, model, tokenizer, alphabet):
        super().__init__(model, tokenizer)
        pieces = tokenizer.get_id_to_piece_list()
        self.allowed = {i for i in range(tokenizer.get_vocab_size()) if len(pieces[i]) == 1 and pieces[i] in alphabet}
    def begin(self, prefix_str = ""):
        self.token_sequence = []
    def feed(self, token):
        self.token_sequence.append(int(token[0][0]))
    def next(self):
        allowed = sorted(self.allowed)
        if not hasattr(self, "allow_return_type_list"): return set(allowed), set()
        return allowed, []
    def use_background_worker(self): return True
prompts = ["A list of numbers:", "Another:"]
filters = [[ExLlamaV2TokenEnforcerFilter(model, tokenizer, "[]0123456789,"),
            ExLlamaV2PrefixFilter(model, tokenizer, ["[1", "[2"])], None]
outputs = generator.generate(prompt = prompts, filters = filters, filter_prefer_eos = True, max_new_tokens = 12,
                             add_bos = True, stop_conditions = [tokenizer.eos_token_id], completion_only = True)
print(outputs[0])
""",
        r"^\[[12][\[\]\d,]+\n$",
    ),
    "banned strings": (
        DYNAMIC
        + """
text = generator.generate("one", 20, gen_settings = ExLlamaV2Sampler.Settings.greedy(), completion_only = True)
job = ExLlamaV2DynamicJob(tokenizer.encode("one"), 20, gen_settings = ExLlamaV2Sampler.Settings.greedy(),
                          banned_strings = [text[3:6]], return_probs = True, return_top_tokens = 5)
generator.enqueue(job)
while generator.num_remaining_jobs():
    for r in generator.iterate():
        if "suppressed_text" in r: print("suppressed", r["suppressed_tokens"].shape[-1] > 0)
        if "text" in r: assert r["top_k_probs"].shape[-1] == 5
""",
        r"suppressed True",
    ),
    "prompts that begin alike": (
        DYNAMIC
        + """
prefix = "This is a long beginning that all of them have. " * 12
for i in range(4):
    generator.enqueue(ExLlamaV2DynamicJob(tokenizer.encode(prefix + str(i)), 4, identifier = i))
while generator.num_remaining_jobs():
    for r in generator.iterate():
        if r["eos"]: print("cached", r["cached_pages"], r["cached_tokens"], r["prompt_tokens"])
""",
        r"cached 0 0 553\n(cached 2 552 553\n){3}",
    ),
    "the older streaming generator in a chat": (
        """
generator = ExLlamaV2StreamingGenerator(model, cache, tokenizer)
generator.set_stop_conditions([tokenizer.eos_token_id])
gen_settings = ExLlamaV2Sampler.Settings()
gen_settings.temperature = 0.85
gen_settings.top_k = 50
for instruction in ("Hello", "And now?"):
    ids = tokenizer.encode(f"[INST] {instruction} [/INST]", add_bos = True)
    context = ids if generator.sequence_ids is None else torch.cat([generator.sequence_ids, ids], dim = -1)
    generator.begin_stream_ex(context, gen_settings)
    for _ in range(8):
        res = generator.stream_ex()
        if res["eos"]: break
        print(res["chunk"], end = "")
    print()
print("in all", generator.sequence_ids.shape[-1] > 40)
""",
        r"in all True",
    ),
    "the older base generator": (
        """
cache = ExLlamaV2Cache_Q4(model, max_seq_len = 512)
generator = ExLlamaV2BaseGenerator(model, cache, tokenizer)
settings = ExLlamaV2Sampler.Settings()
settings.token_repetition_penalty = 1.01
settings.disallow_tokens(tokenizer, [tokenizer.eos_token_id])
generator.warmup()
print(generator.generate_simple(["Our story", "Another one"], settings, 10, seed = 1234))
""",
        r"\['Our story.+Another one.+\]|\[\"Our story.*",
    ),
    "perplexity by its own passes": (
        """
ids = torch.randint(0, 255, (1, 200))
logits = model.forward(ids[:, :-1], last_id_only = False)
log_probs = torch.log_softmax(logits.float(), dim = -1).gather(-1, ids[:, 1:].to(logits.device).unsqueeze(-1))
other = ExLlamaV2Cache(model, max_seq_len = 256)
model.forward(ids[:, :-2], other, preprocess_only = True)
last = model.forward(ids[:, -2:-1], other)
print("same", torch.allclose(last[0, -1], logits[0, -1], atol = 1e-3), log_probs.mean().item() < 0)
""",
        r"same True True",
    ),
}
REFUSED = {
    "adapters": ("lora = ExLlamaV2Lora.from_directory(model, 'adapter')", "ExLlamaV2Lora: adapters are not supported"),
    "images": ("vision = ExLlamaV2VisionTower(config)", "ExLlamaV2VisionTower: images are not supported"),
    "embeddings": (DYNAMIC + "generator.generate('a', 4, embeddings = [object()])", "embeddings=.* not supported"),
    "two cards": ("model.load_tp()", "load_tp: tensor parallelism is not supported"),
    "FP8": ("ExLlamaV2Cache_8bit(model)", "use ExLlamaV2Cache_Q8"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = {"vocab_size": 272, "max_position_embeddings": 2048}
    return byte_level(write_random_model(tmp_path_factory.mktemp("model"), config))


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_runs(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    script, expected = SCRIPTS[name]
    monkeypatch.setattr(sys, "argv", ["script.py", str(folder)])
    exec(compile(START + script, name, "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    assert re.search(expected, printed), printed


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_meant_says_so(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, message = REFUSED[name]
    monkeypatch.setattr(sys, "argv", ["script.py", str(folder)])
    with pytest.raises(Exception, match=message):
        exec(compile(START + script, name, "exec"), {"__name__": "__main__"})
