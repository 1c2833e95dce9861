"""llama.cpp's half of cpu.py, run by the interpreter of an environment that has llama-cpp-python.

    PYTHON llama_cpp_peer.py GGUF '{"context": 128, "tokens": 32, "prompt": 512, "threads": 2}'

Each line that comes in is answered with the seconds of one round, [decoding, prompt], as JSON. Times are of
llama_decode, the call of the library itself, and of finding the likeliest token.
"""

import json
import random
import sys
import time

import llama_cpp
import numpy as np


def main() -> None:
    path, work = sys.argv[1], json.loads(sys.argv[2])
    model = llama_cpp.Llama(
        path,
        n_ctx=max(work["context"] + work["tokens"] + 1, work["prompt"]) + 64,
        n_batch=work["prompt"],
        n_ubatch=work["prompt"],
        n_threads=work["threads"],
        n_threads_batch=work["threads"],
        verbose=False,
    )
    for _ in sys.stdin:
        print(json.dumps(one_round(model, work)), flush=True)


def one_round(model: "llama_cpp.Llama", work: dict[str, int]) -> list[float]:
    generator = random.Random(0)
    draw = [generator.randrange(model.n_vocab()) for _ in range(max(work["context"], work["prompt"]))]
    start_over(model)
    token = forward(model, draw[: work["context"]])
    token = forward(model, [token])
    begun = time.perf_counter()
    for _ in range(work["tokens"]):
        token = forward(model, [token])
    decode = time.perf_counter() - begun
    start_over(model)
    begun = time.perf_counter()
    forward(model, draw[: work["prompt"]])
    return [decode, time.perf_counter() - begun]


def start_over(model: "llama_cpp.Llama") -> None:
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(model.ctx), True)


def forward(model: "llama_cpp.Llama", tokens: list[int]) -> int:
    """Everything through the model; the likeliest token after the last."""
    array = (llama_cpp.llama_token * len(tokens))(*tokens)
    status = llama_cpp.llama_decode(model.ctx, llama_cpp.llama_batch_get_one(array, len(tokens)))
    if status:
        sys.exit(f"llama_decode gives {status}")
    logits = llama_cpp.llama_get_logits_ith(model.ctx, -1)
    return int(np.ctypeslib.as_array(logits, (model.n_vocab(),)).argmax())


if __name__ == "__main__":
    main()
