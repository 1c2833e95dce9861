"""EXL2 products on the CPU: every width and mixture, odd shapes, and what lies around the buffers."""

import ctypes
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from closeness import assert_close
from kernels.test_matmul import MIXES, random_exl2
from polybit.format import exl2
from polybit.format.exl2 import Exl2Tensor
from polybit.kernels import reference
from polybit.kernels.protocol import Matrix
from polybit.spec import Activation

numba = pytest.importorskip("numba")

cpu = pytest.importorskip("polybit.kernels.cpu")
exponential = pytest.importorskip("polybit.kernels.cpu.exponential")
layout = pytest.importorskip("polybit.kernels.cpu.layout")
products = pytest.importorskip("polybit.kernels.cpu.products")
team_of_cpu = pytest.importorskip("polybit.kernels.cpu.team")
tile_code = pytest.importorskip("polybit.kernels.cpu.tile_code")
kept = pytest.importorskip("polybit.kernels.cpu.cache")
llvm = pytest.importorskip("llvmlite.binding")
ir = pytest.importorskip("llvmlite.ir")

SOURCES = Path(__file__).parents[2] / "src"
WIDTHS = {str(bits): [(bits, 96), (bits, 32)] for bits in exl2.WIDTHS}
ODD = {
    "576": [(4, 64)] * 3 + [(3, 32)] * 12,
    "1376": [(6, 128), (5, 32)] + [(4, 64)] * 10 + [(2, 576)],
    "2080": [(3, 1024), (2, 1024), (2, 32)],
}


def unrounded(tensor: Exl2Tensor) -> Tensor:
    """[K, N] fp64: levels times scales, without the rounding of each product to fp16."""
    scales = exl2.group_scales(exl2.unpack_codes(tensor.q_scale), tensor.q_scale_max).double()
    weights = scales.repeat_interleave(torch.tensor([group.rows for group in tensor.layout.groups]), dim=0)
    for span in tensor.layout.spans():
        weights[span.rows] *= exl2.unpack_rows(tensor.q_weight[span.packed_rows], span.bits).double() - (
            1 << (span.bits - 1)
        )
    return weights[tensor.q_invperm.long()]


@pytest.mark.parametrize("rows", [*range(1, 10), 33])
@pytest.mark.parametrize("groups", (WIDTHS | MIXES).values(), ids=(WIDTHS | MIXES).keys())
def test_products(random, groups, rows) -> None:
    tensor = random_exl2(groups, 96, random)
    x = torch.randn(rows, tensor.in_features, generator=random)
    product = cpu.matmul(x, _prepare(tensor))
    assert_close(product, x.double() @ unrounded(tensor), "integer matmul, weights unrounded")


@pytest.mark.parametrize("columns", [32, 64, 160])
@pytest.mark.parametrize("groups", ODD.values(), ids=ODD.keys())
def test_odd_sizes(random, groups, columns) -> None:
    tensor = random_exl2(groups, columns, random)
    x = torch.randn(3, tensor.in_features, generator=random)
    product = cpu.matmul(x, _prepare(tensor))
    assert_close(product, x.double() @ unrounded(tensor), "integer matmul, weights unrounded")


def test_long_groups_do_not_overflow(random) -> None:
    tensor = random_exl2([(8, 8192)], 32, random)
    x = torch.full((1, 8192), 3.0)
    product = cpu.matmul(x, _prepare(tensor))
    assert_close(product, x.double() @ unrounded(tensor), "integer matmul, weights unrounded")


@pytest.mark.parametrize("magnitude", [1e-25, 1e25])
def test_activations_of_any_magnitude(random, magnitude) -> None:
    tensor = random_exl2(MIXES["4+3"], 32, random)
    x = torch.randn(2, tensor.in_features, generator=random) * magnitude
    product = cpu.matmul(x, _prepare(tensor))
    assert_close(product, x.double() @ unrounded(tensor), "integer matmul, weights unrounded")


@pytest.mark.parametrize("fault", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_so(random, fault) -> None:
    tensor = random_exl2(MIXES["4+3"], 32, random)
    x = torch.randn(2, tensor.in_features, generator=random)
    x[1, 17] = fault
    product = cpu.matmul(x, _prepare(tensor))
    assert product[0].isfinite().all()
    assert not product[1].isfinite().any()


def test_zeros_give_the_residual(random) -> None:
    tensor = random_exl2(MIXES["4+3"], 32, random)
    residual = torch.randn(2, 32, generator=random)
    assert torch.equal(cpu.matmul(torch.zeros(2, tensor.in_features), _prepare(tensor), residual), residual)


@pytest.mark.usefixtures("_threads_as_before")
@pytest.mark.parametrize("rows", [1, 3, 20])
def test_the_number_of_threads_changes_no_bit(random, rows) -> None:
    tensor = random_exl2(MIXES["8+6+5+4+3+2"], 320, random)
    matrix, x = _prepare(tensor), torch.randn(rows, tensor.in_features, generator=random)
    products = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        products.append(cpu.matmul(x, matrix))
    assert torch.equal(*products)


def test_a_row_is_the_same_alone_and_among_others(random) -> None:
    tensor = random_exl2(MIXES["8+6+5+4+3+2"], 96, random)
    matrix, x = _prepare(tensor), torch.randn(13, tensor.in_features, generator=random)
    together = cpu.matmul(x, matrix)
    assert all(torch.equal(cpu.matmul(x[i : i + 1], matrix)[0], together[i]) for i in range(13))


@pytest.mark.parametrize("rows", [1, 2, 9])
@pytest.mark.parametrize("groups", (WIDTHS | MIXES).values(), ids=(WIDTHS | MIXES).keys())
def test_nothing_beyond_the_buffers_counts(random, groups, rows) -> None:
    """The product is the same whatever bytes surround the matrix and the activations, and writes nothing there."""
    tensor = random_exl2(groups, 96, random)
    matrix, x = _prepare(tensor), torch.randn(rows, tensor.in_features, generator=random)
    expected = cpu.matmul(x, matrix)
    for filler in (0x00, 0xFF):
        words, intact_words = _surrounded(matrix.words[0].numpy(), filler)
        moved = replace(matrix, words=(torch.from_numpy(words),))
        guarded = [_surrounded(part, filler) for part in (*moved.arrays, x.numpy(), np.empty((rows, 96), np.float32))]
        *parts, given, out = (inside for inside, _ in guarded)
        through, no_residual = products.passes(rows), np.empty((0, 96), np.float32)
        with team_of_cpu.team.turn:
            board, _ = team_of_cpu.team.call()
            products.multiply(given, *parts, no_residual, through.starts, through.functions, board, 2, out)
        assert torch.equal(torch.from_numpy(out), expected)
        assert intact_words()
        assert all(intact() for _, intact in guarded)


def _surrounded(array: np.ndarray, filler: int) -> tuple[np.ndarray, Callable[[], bool]]:
    """A copy with a page of `filler` on each side, and whether those pages are as they were."""
    margin = 4096
    memory = np.full(array.nbytes + 2 * margin, filler, np.uint8)
    memory[margin : margin + array.nbytes] = array.reshape(-1).view(np.uint8)
    inside = memory[margin : margin + array.nbytes].view(array.dtype).reshape(array.shape)
    outside = (memory[:margin], memory[margin + array.nbytes :])
    return inside, lambda: all((part == filler).all() for part in outside)


def _prepare(tensor: Exl2Tensor) -> Matrix:
    matrix = cpu.prepare_exl2(tensor, 1.0, torch.device("cpu"), torch.float32, False)
    assert isinstance(matrix, layout.TiledMatrix)
    return matrix


def test_memory_is_that_of_the_file(random) -> None:
    tensor = random_exl2([(4, 64)] * 4 + [(3, 32)] * 24 + [(2, 64)] * 16, 1536, random)
    assert _prepare(tensor).num_bytes < 1.1 * tensor.num_bytes


DOTS = {"avx2": ("dot_avx2", "x86_64", "+avx2,+fma"), "anywhere": ("dot_anywhere", "", "")}


class TestOtherProcessors:
    """The code for processors that this one is not: run where it can do what they do, else compiled alone."""

    @pytest.mark.parametrize("rows", [1, 2])
    @pytest.mark.parametrize(("dot", "architecture", "features"), DOTS.values(), ids=DOTS.keys())
    def test_products(self, random, dot, architecture, features, rows) -> None:
        if architecture and platform.machine() != architecture:
            pytest.skip(f"this is {platform.machine()}")
        tensor = random_exl2(MIXES["8+6+5+4+3+2"], 64, random)
        matrix, x = _prepare(tensor), torch.randn(rows, tensor.in_features, generator=random)
        machine = tile_code.Machine(getattr(tile_code, dot), 4, permutes_16=False)
        engine = llvm.create_mcjit_compiler(*_compiled(machine, rows, llvm.get_default_triple(), features))
        multiply = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 9)(engine.get_function_address("tile"))
        out = _one_tile(multiply, matrix, x.numpy())
        assert_close(torch.from_numpy(out), x.double() @ unrounded(tensor), "integer matmul, weights unrounded")

    def test_arm_has_dot_products_of_its_own(self) -> None:
        machine = tile_code.Machine(tile_code.dot_arm, 4, permutes_16=False)
        module, target = _compiled(machine, 1, "aarch64-unknown-linux-gnu", "+dotprod")
        assert target.emit_assembly(module).count("\tsdot\t") > 64


def _compiled(machine: "tile_code.Machine", rows: int, triple: str, features: str) -> tuple:
    """A module with the function `tile`, and its target machine."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * 9), "tile")
    builder = ir.IRBuilder(function.append_basic_block())
    pointers = [builder.inttoptr(each, ir.IntType(8).as_pointer()) for each in function.args]
    num_runs = builder.trunc(function.args[3], ir.IntType(32))
    tile_code.Tile(builder, machine, rows, *pointers[:3], *pointers[4:]).emit(num_runs)
    builder.ret_void()
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    target = llvm.Target.from_triple(triple).create_target_machine(features=features, jit=True)
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    llvm.create_pass_builder(target, options).getModulePassManager().run(
        parsed, llvm.create_pass_builder(target, options)
    )
    return parsed, target


def _one_tile(multiply: Callable[..., None], matrix: Matrix, x: np.ndarray) -> np.ndarray:
    """The product of a matrix of 64 columns, by a function for as many rows as x has."""
    codes, scales, runs, order, _, _ = matrix.arrays
    words = matrix.words[0].numpy()
    rows, width = x.shape
    taken = np.empty(2 * rows * width, np.int8)
    sums, x_scales = np.empty(2 * rows * len(runs), np.int32), np.empty(rows * len(runs), np.float32)
    products.quantize_pass(x, 0, rows, order, runs, np.empty(width, np.float32), taken, sums, x_scales)
    out = np.full((rows, 64), np.nan, np.float32)
    arrays = (words, codes, runs, None, scales, taken, sums, x_scales, out)
    multiply(*(len(runs) if array is None else array.ctypes.data for array in arrays))
    return out


@pytest.mark.parametrize("variable", ["POLYBIT_CACHE", "NUMBA_CACHE_DIR"])
def test_a_folder_that_cannot_be_written_is_named_once(monkeypatch, tmp_path, caplog, variable) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "folder"
    monkeypatch.setenv("POLYBIT_CACHE", str(folder))
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(folder) if variable == "NUMBA_CACHE_DIR" else "")
    kept.keep_compiled()
    [record] = caplog.records
    assert f"compiled kernels cannot be kept in {folder}" in record.message
    assert f"set {variable} to a folder that can be written" in record.message
    assert Path(numba.config.CACHE_DIR).is_dir()


def test_what_a_folder_that_cannot_be_written_holds_is_used(monkeypatch, tmp_path, caplog) -> None:
    monkeypatch.setenv("POLYBIT_CACHE", str(tmp_path))

    def compiled() -> numba.core.dispatcher.Dispatcher:
        monkeypatch.setattr(numba.config, "CACHE_DIR", "")
        kept.keep_compiled()
        function = numba.njit(cache=True)(exponential.exponentials.py_func)
        function(np.zeros(1, np.float32))
        return function

    assert sum(compiled().stats.cache_misses.values()) == 1
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert sum(compiled().stats.cache_hits.values()) == 1
    assert (sorted(tmp_path.rglob("*")), caplog.records) == (before, [])


TOKENS = 700  # more than one core is given at once


def test_rows_between_products_are_the_same_alone_and_among_others(random) -> None:
    x, up = torch.randn(2, TOKENS, 96, generator=random)
    heads, positions = x.view(TOKENS, 6, 16), torch.arange(TOKENS)
    cos, sin, weight = torch.randn(TOKENS, 8), torch.randn(TOKENS, 8), torch.randn(96, generator=random)

    def between(rows: slice) -> list[Tensor]:
        rotated = cpu.rope(heads[rows], heads[rows, :2], positions[rows], cos, sin, False)
        gated = [cpu.gated_activate(x[rows], up[rows], each) for each in (Activation.SILU, Activation.GELU_TANH)]
        return [cpu.rms_norm(x[rows], weight, 1e-6, 0.0), *gated, *rotated]

    together = between(slice(None))
    for i in (0, 1, 350, TOKENS - 1):
        for alone, among in zip(between(slice(i, i + 1)), together, strict=True):
            assert torch.equal(alone[0], among[i])


@pytest.mark.parametrize("window", [None, 5])
def test_a_step_of_one_token_attends_the_same_beside_prompts(random, window) -> None:
    k, v = torch.randn(2, 4, 16, 2, 32, generator=random)
    lengths, counts = torch.tensor([20, 9, 30, 3]).int(), torch.tensor([1, 9, 2, 0])
    table, starts = torch.tensor([[0, 1], [2, 0], [3, 1], [1, 0]]).int(), F.pad(counts.cumsum(0), (1, 0)).int()
    q = torch.randn(int(counts.sum()), 4, 32, generator=random)
    arguments = 0.2, window, None
    together = cpu.attention(q, k, v, table, starts, lengths, 9, *arguments)
    assert_close(together, reference.attention(q, k, v, table, starts, lengths, 9, *arguments), "attention")
    for s in (0, 2):
        own = slice(int(starts[s]), int(starts[s + 1]))
        first, count = torch.tensor([0, int(counts[s])]).int(), int(counts[s])
        alone = cpu.attention(q[own], k, v, table[s : s + 1], first, lengths[s : s + 1], count, *arguments)
        assert torch.equal(alone, together[own])


def _in_a_process_of_its_own(script: str, **settings: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(map(str, (SOURCES, Path(__file__).parents[1])))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2"} | settings
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300)


def test_starting_threads_leaves_torch_its_number() -> None:
    """Numba's OpenMP and torch's are one library, whose number conversions' bits depend on."""
    script = "import torch; from polybit.kernels.cpu.threads import cores; cores(); print(torch.get_num_threads())"
    found = _in_a_process_of_its_own(script)
    assert found.stdout.strip() == "1", found.stderr


AT_ONCE = """
import threading, torch
from kernels.test_matmul import MIXES, random_exl2
from polybit.kernels import cpu
from polybit.kernels.cpu import rounding

torch.set_num_threads(2)
random = torch.Generator().manual_seed(0)
matrix = cpu.prepare_exl2(random_exl2(MIXES["4+3"], 320, random), 1.0, torch.device("cpu"), torch.float32, False)
x = torch.randn(3, matrix.in_features, generator=random)
w, scale, h = torch.randn(32, 640), torch.ones(640), torch.eye(32)
expected = cpu.matmul(x, matrix)

def multiply():
    for _ in range(200):
        assert torch.equal(cpu.matmul(x, matrix), expected)

def round():
    for _ in range(200):
        rounding.round_rows(w.clone(), scale, h, 3)

threads = [threading.Thread(target=task) for task in (multiply, multiply, round)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print("done")
"""


@pytest.mark.parametrize("layer", ["workqueue", "default"])
def test_threads_may_call_at_once(layer: str) -> None:
    """Of Numba's ways to use threads, workqueue ends the process when two callers meet."""
    found = _in_a_process_of_its_own(AT_ONCE, NUMBA_THREADING_LAYER=layer)
    assert (found.returncode, found.stdout.strip(), found.stderr) == (0, "done", "")


COUNT_ALLOCATIONS = """
import torch
from kernels.test_matmul import MIXES, random_exl2
from numba.core.runtime import rtsys
from polybit.kernels import cpu
from polybit.kernels.pages import QuantizedPages
from polybit.spec import Activation

torch.set_num_threads(1)  # a helper counts too when it wakes
random = torch.Generator().manual_seed(0)
matrix = cpu.prepare_exl2(random_exl2(MIXES["4+3"], 320, random), 1.0, torch.device("cpu"), torch.float32, False)

def pages(bits):
    if bits == 16:
        return torch.randn(4, 16, 2, 32)
    return QuantizedPages(torch.zeros(4, 16, 2, bits, dtype=torch.int32), torch.zeros(4, 16, 2, 1).half(), bits)

def attend(rows, bits):
    k_pages, v_pages = pages(bits), pages(bits)
    table, ones = torch.zeros(rows, 1, dtype=torch.int32), torch.ones(rows, dtype=torch.int32)
    q, starts = torch.randn(rows, 4, 32), torch.arange(rows + 1, dtype=torch.int32)
    cpu.attention(q, k_pages, v_pages, table, starts, ones, 1, 0.2, None, None)
    cpu.decode_attention(q, q[:, :2], q[:, :2], k_pages, v_pages, table, ones, None, None, None, 0.2, None, None)

kernels = {
    "attention": lambda rows: attend(rows, 16),
    "quantized attention": lambda rows: attend(rows, 8),
    "matmul": lambda rows: cpu.matmul(torch.randn(rows, matrix.in_features), matrix),
    "gated_activate": lambda rows: cpu.gated_activate(*torch.randn(2, rows, 96), Activation.SILU),
}
for name, kernel in kernels.items():
    counts = set()
    for rows in (1, 2, 7, 700):
        before = rtsys.get_allocation_stats().mi_alloc
        kernel(rows)
        counts.add(rtsys.get_allocation_stats().mi_alloc - before)
    print(name, "the same for any work" if len(counts) == 1 and 0 not in counts else counts, sep=": ")
"""


def test_memory_is_asked_for_before_threads_share_the_work() -> None:
    """Where there is none a kernel raises; a thread of the team could not."""
    found = _in_a_process_of_its_own(COUNT_ALLOCATIONS, NUMBA_NRT_STATS="1")
    told = dict(line.split(": ", maxsplit=1) for line in found.stdout.splitlines())
    names = "attention", "quantized attention", "matmul", "gated_activate"
    assert told == dict.fromkeys(names, "the same for any work"), found.stderr
