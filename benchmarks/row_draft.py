"""Draft: the row sorted by a launch before, or by each thread block: errors, products and layers, in one process."""

import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from exl2_decode import COPIES_BYTES, MAX_ERROR, SHAPES, Input, error, layer_us, make, make_layers, microseconds

from polybit.kernels.cuda import decode, launch
from polybit.kernels.cuda.compile import Build, cached_cubin

MODES = {  # sorted by every thread block, warps, slots, variant
    "launch 16x2": (False, 16, 2, {}),
    "launch 16x2 tiles": (False, 16, 2, {"TILES": 1}),
    "launch 8x3 tiles": (False, 8, 3, {"TILES": 1}),
    "block 16x2": (True, 16, 2, {}),
    "block 16x2 tiles": (True, 16, 2, {"TILES": 1}),
    "block 16x2 early": (True, 16, 2, {"TILES": 1, "WEIGHTS_FIRST": 1}),
    "block 12x2 tiles": (True, 12, 2, {"TILES": 1}),
    "block 8x2 tiles": (True, 8, 2, {"TILES": 1}),
    "block 8x3 tiles": (True, 8, 3, {"TILES": 1}),
    "block 8x3 early": (True, 8, 3, {"TILES": 1, "WEIGHTS_FIRST": 1}),
    "launch 16x2 carve": (False, 16, 2, {"TILES": 1}),
    "launch 8x3 carve": (False, 8, 3, {"TILES": 1}),
    "block 16x2 carve": (True, 16, 2, {"TILES": 1}),
    "block 8x2 carve": (True, 8, 2, {"TILES": 1}),
    "block 8x3 carve": (True, 8, 3, {"TILES": 1}),
}


def use(mode: str) -> None:
    decode.ROWS, decode.ROW_WARPS, decode.SLOTS, variant = MODES[mode]
    decode.VARIANT.clear()
    decode.VARIANT.update(variant)
    launch.CARVEOUT = mode.endswith("carve")
    launch.Kernel.get.cache_clear()
    decode._plan.cache_clear()


def builds() -> list[Build]:
    found = [Build("exl2_stream.cu"), *(decode.activations(kind, torch.float16) for kind in decode.KINDS)]
    for sorts, warps, slots, variant in MODES.values():
        macros = {"NT": 1, "ONE": 1, "WARPS": warps, "SLOTS": slots} | variant
        files = ("exl2_decode.cu", "exl2_row.cu") if sorts else ("exl2_decode.cu",)
        found += [Build.of(file, macros) for file in files]
    return list(dict.fromkeys(found))


def main() -> None:
    started, rows = time.monotonic(), []
    with ProcessPoolExecutor(8, mp_context=get_context("spawn")) as pool:
        list(pool.map(partial(cached_cubin, architecture="sm_90"), builds()))
    print(f"compiled in {time.monotonic() - started:.0f} s", flush=True)
    for model in ("70b 2.2", "8b 4"):
        layers = make_layers(model)
        for mode in MODES:
            use(mode)
            print(f"{model:16s} layer {mode:18s} {layer_us(layers, 1):6.1f} us", flush=True)
        print(f"[{time.monotonic() - started:.0f} s]")
        del layers
        for name in [n for n in SHAPES if n.startswith(model[:2]) and "head" not in n]:
            width, parts, kind = SHAPES[name]
            tensors, matrix = make(width, parts)
            copies = [make(width, parts)[1] for _ in range(min(8, int(COPIES_BYTES / matrix.num_bytes)))]
            launches = [matrix, *copies] * max(1, 16 // (1 + len(copies)))
            given = Input.make(kind, 1, width)
            for mode in MODES:
                use(mode)
                found, again = (
                    error(given, tensors, matrix),
                    torch.equal(given.multiply(matrix), given.multiply(matrix)),
                )
                taken = microseconds([partial(given.multiply, each) for each in launches])
                rows.append({"shape": name, "mode": mode, "us": taken, "error": found})
                bad = "" if found < MAX_ERROR and again else "  WRONG"
                print(f"{name:16s} {kind:5s} {mode:18s} {taken:6.1f} us error {found:.1e}{bad}", flush=True)
            print(f"[{time.monotonic() - started:.0f} s]")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
