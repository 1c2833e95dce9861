"""EXL2 products of a few rows on the card, alone: checked against the dequantized product, then timed.

    python benchmarks/exl2_decode.py [--tokens 1 4 16] [--config NT,WN,WK,SLOTS ...]

Prints microseconds and the share of the read bandwidth that the weights' bytes make of them. Weights are rotated among
copies so that none comes from the second-level cache.
"""

import argparse
import json
import sys

import numpy as np
import torch

sys.path.insert(0, "src")

from polybit.format import exl2
from polybit.kernels.cuda.compile import Build
from polybit.kernels.cuda.launch import Kernel
from polybit.kernels.cuda.matrices import prepare, tables_for
from polybit.kernels.cuda.schedule import Warps
from polybit.quantizer.candidates import parameter_set

DEVICE = torch.device("cuda:0")
S2, M2, D2 = "5%x3b/g64 + 95%x2b/g64", "10%x3b/g64 + 90%x2b/g64", "5%x6b/g32 + 20%x3b/g64 + 75%x2b/g64"
L4, H6 = "100%x4b/g128", "15%x8b/g128 + 85%x6b/g128"
SHAPES = {
    "70b qkv 2.2": (8192, [(8192, S2), (1024, S2), (1024, S2)]),
    "70b o 2.2": (8192, [(8192, M2)]),
    "70b gate+up 2.2": (8192, [(28672, S2), (28672, S2)]),
    "70b down 2.3": (28672, [(8192, D2)]),
    "70b head 6": (8192, [(128256, H6)]),
    "8b gate+up 4": (4096, [(14336, L4), (14336, L4)]),
    "8b o 4": (4096, [(4096, L4)]),
}
CHECKS = {
    "576 all widths": (576, [(n, s) for n, s in [(576, "5%x8b/g32 + 20%x6b/g64 + 25%x5b/g32 + 20%x4b/g64 + 20%x3b/g32 + 10%x2b/g32"), (192, L4), (160, S2)]]),
    "1376": (1376, [(96, "10%x5b/g128 + 90%x4b/g128"), (1056, "100%x8b/g128")]),
    "2080": (2080, [(2080, "10%x4b/g64 + 90%x3b/g64"), (64, "100%x2b/g128"), (32, "100%x5b/g64"), (64, H6)]),
    "3g128": (4096, [(1024, "10%x4b/g128 + 90%x3b/g128"), (512, "10%x6b/g32 + 90%x5b/g32")]),
}


def random_tensor(k, n, text, perm):
    layout = parameter_set(text).layout(k)
    g = len(layout.groups)
    starts = np.cumsum([0] + [group.packed_rows for group in layout.groups])[:-1]
    groups = torch.tensor(np.stack([[group.bits for group in layout.groups], starts], 1).reshape(-1).astype(np.int16))
    return exl2.Exl2Tensor(
        torch.randint(-(2**31), 2**31 - 1, (layout.packed_rows, n), dtype=torch.int32, device=DEVICE),
        torch.randint(-(2**31), 2**31 - 1, (g, n // 8), dtype=torch.int32, device=DEVICE),
        (torch.rand(g, device=DEVICE) * 0.02 + 0.005).half(),
        groups, torch.argsort(perm).int(),
    )


def make(k, parts, shared_perm=True):
    perm = torch.randperm(k, device=DEVICE)
    tensors = [random_tensor(k, n, text, perm if shared_perm else torch.randperm(k, device=DEVICE)) for n, text in parts]
    return tensors, prepare(tensors, [1.0] * len(tensors), DEVICE)


class Decode:
    def __init__(self, config, one=False, out_float=False, pdl=False, trace=False):
        nt, wn, wk, slots, resident, waves = (*config, 1, 1)[:6] if len(config) < 6 else config
        self.nt, self.config = nt, config
        self.warps = Warps(wn, wk, {1: 4}.get(nt, 2))
        self.threads = 32 * wn * wk
        macros = {"NT": nt, "WN": wn, "WK": wk, "SLOTS": slots, "RESIDENT": resident, "ONE": int(one), "OUT_FLOAT": int(out_float), "PDL": int(pdl), "TRACE": int(trace)}
        tokens = 1 if one else 8 * nt
        self.ring = wn * wk * slots * (2176 + (64 * tokens + (16 if one else 8 * tokens)) * self.warps.max_chunk)
        self.pdl = pdl
        self.traces = 0
        self.trace = None
        if trace:
            count = waves * torch.cuda.get_device_properties(0).multi_processor_count * wn * wk
            self.trace = [torch.zeros(count, 8, dtype=torch.int64, device=DEVICE) for _ in range(64)]
        self.kernels = {}
        self.build = Build.of("exl2_decode.cu", macros)
        self.num_blocks = waves * torch.cuda.get_device_properties(0).multi_processor_count
        self.workspace = torch.empty(2 * self.num_blocks * 8 * nt * 64 * wn, device=DEVICE)
        self.sort = Kernel(Build.of("activations.cu", {"IN": 0}), "sort_rows", 0)
        self.counters = torch.zeros(2 * wn * self.num_blocks, dtype=torch.int32, device=DEVICE)

    def prepared(self, x, streamed):
        t, given = x.shape[0], streamed.input
        xs = torch.full((given.num_bytes(t) // 4,), float("nan"), device=DEVICE)
        self.sort.launch((-(-given.num_groups // 4), t), 128, x, given.order, given.groups, xs, given.num_groups, t, x.shape[1])
        return xs, t

    def __call__(self, prepared, streamed, out):
        xs, t = prepared
        tables = tables_for(streamed, self.warps, self.num_blocks)
        shared = self.ring + tables.schedule.num_sums * t * 68 * 4
        shared = -(-shared // 1024) * 1024
        if shared not in self.kernels:
            self.kernels[shared] = Kernel(self.build, "exl2_decode", 0, shared)
        self.kernels[shared].launch((self.num_blocks,), self.threads, streamed.stream, tables.runs, tables.tiles,
            streamed.maxima, xs, out, None, None, self.workspace, self.counters, tables.runs.shape[2],
            tables.tiles.shape[1], t, out.shape[1], *self.traced(), overlap=self.pdl)

    def traced(self):
        if self.trace is None:
            return ()
        self.traces += 1
        return (self.trace[self.traces % 64],)


def reference(x, tensors):
    return torch.cat([x.float() @ exl2.dequantize(tensor).float() for tensor in tensors], 1)


def error(got, want):
    return float((got.float() - want).norm() / want.norm())


def check(decode, tokens, name, k, parts, shared):
    tensors, streamed = make(k, parts, shared)
    x = (torch.randn(tokens, k, device=DEVICE) * torch.logspace(-3, 2, tokens, device=DEVICE)[:, None]).half()
    out = torch.full((tokens, streamed.out_features), float("nan"), device=DEVICE, dtype=torch.float16)
    xs = decode.prepared(x, streamed)
    want = reference(x, tensors)
    decode(xs, streamed, out)
    err = max(error(out[t], want[t]) for t in range(tokens))
    again = torch.full_like(out, float("nan"))
    decode(xs, streamed, again)
    torch.cuda.synchronize()
    dense = 0.0
    for i, tensor in enumerate(tensors):
        found = streamed.dequantize(i, 0, streamed.shapes[i].num_tiles).T
        exact = exl2.dequantize(tensor)[tensor.perm.to(DEVICE)]
        dense = max(dense, float((found != exact).sum()))
    ok = err < 2e-3 and torch.equal(out, again) and dense == 0
    if not ok: print(f"  {'ok ' if ok else 'BAD'} {name} shared={shared} T={tokens} error {err:.2e} same {torch.equal(out, again)} dense mismatches {dense:.0f}")
    return ok


def timed(decode, tokens, k, parts, copies, want_bytes):
    sets = [make(k, parts)[1] for _ in range(copies)]
    xs = decode.prepared(torch.randn(tokens, k, device=DEVICE).half(), sets[0])
    out = torch.empty(tokens, sets[0].out_features, device=DEVICE, dtype=torch.float16)
    for s in sets:
        decode(xs, s, out)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    launches = max(copies, 20 // copies * copies)
    with torch.cuda.graph(graph):
        for i in range(launches):
            decode(xs, sets[i % copies], out)
    times = []
    if decode.trace is not None:
        graph.replay(); graph.replay(); torch.cuda.synchronize()
        last = [decode.trace[(decode.traces - launches + 1 + i) % 64] for i in range(launches)]
        names = ["start", "asked", "waited", "first", "looped", "synced", "end"]
        for i in range(8, 11):
            m = last[i].double(); m = m[m[:, 0] > 0]
            t0 = float(last[i - 1].double()[:, 6].max())
            print("   trace from end of previous: " + "  ".join(f"{n} {float(m[:, j].min() - t0) / 1e3:.1f}/{float(m[:, j].median() - t0) / 1e3:.1f}/{float(m[:, j].max() - t0) / 1e3:.1f}" for j, n in enumerate(names)))
    for _ in range(12):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record(); graph.replay(); b.record(); torch.cuda.synchronize()
        times.append(a.elapsed_time(b) / launches * 1e3)
    return sorted(times)[len(times) // 2], sets[0].stream.nbytes


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--config", nargs="*", default=["1,1,16,3"])
    p.add_argument("--tokens", nargs="*", type=int, default=[1])
    p.add_argument("--shapes", nargs="*", default=list(SHAPES))
    p.add_argument("--pdl", action="store_true")
    p.add_argument("--trace", action="store_true")
    p.add_argument("--json")
    args = p.parse_args()
    big = torch.empty(1 << 31, dtype=torch.int32, device=DEVICE).random_()
    torch.cuda.synchronize()
    for _ in range(3):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record(); big.view(torch.float32).amax(); b.record(); torch.cuda.synchronize()
    bandwidth = big.nbytes / a.elapsed_time(b) / 1e6
    del big
    print(torch.cuda.get_device_name(0), f"read {bandwidth:.0f} GB/s")
    rows = []
    for text in args.config:
        config = tuple(map(int, text.split(",")))
        try:
            for tokens in args.tokens:
                if tokens > 8 * config[0] or (tokens <= 4 * config[0] and config[0] > 1):
                    continue
                decode = Decode(config, one=tokens == 1, pdl=args.pdl, trace=args.trace)
                good = all([check(decode, tokens, name, *spec, shared) for name, spec in CHECKS.items() for shared in (True, False)])
                for name in args.shapes:
                    k, parts = SHAPES[name]
                    total = sum(n for n, _ in parts) * k * 2.4 / 8
                    micros, num_bytes = timed(decode, tokens, k, parts, max(1, min(8, int(2.5e8 / total) + 1)), total)
                    share = num_bytes / micros / 1e3 / bandwidth
                    rows.append({"config": text, "tokens": tokens, "shape": name, "us": micros, "fraction": share, "ok": good})
                    print(f"{text:12s} T={tokens:2d} {name:16s} {micros:8.1f} us  {num_bytes/1e6:7.1f} MB  {100*share:5.1f} % {'' if good else 'CHECK RED'}", flush=True)
        except Exception as e:
            import traceback; torch.cuda.synchronize()
            traceback.print_exc(limit=-1)
            print("FAILED", text, repr(e)[:300])
    if args.json:
        json.dump({"device": torch.cuda.get_device_name(0), "read_gb_s": bandwidth, "rows": rows}, open(args.json, "w"), indent=1)


main()
