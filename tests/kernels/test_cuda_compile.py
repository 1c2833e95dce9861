"""CUDA C++ compiles for every supported card, on any machine with NVRTC."""

import struct
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

pytest.importorskip("cuda.core")
pytest.importorskip("triton")

from polybit.errors import KernelError
from polybit.kernels.cuda import batch, gather
from polybit.kernels.cuda import compile as compiling
from polybit.kernels.cuda.compile import Build, compile_cubin
from polybit.kernels.cuda.decode import KINDS, ROWS_AT_ONCE, STATIC_BYTES, activations, form_for
from polybit.kernels.cuda.streamed import DENSE, HALF

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120")
FORMS = tuple(dict.fromkeys(form_for(rows) for rows in range(1, ROWS_AT_ONCE + 1)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_products_of_one_row(architecture) -> None:
    assert shared_bytes(compile_cubin(FORMS[0].build(FORMS[0].most_warps), architecture), "exl2_decode") <= STATIC_BYTES


@pytest.mark.parametrize("form", FORMS[1:], ids=lambda form: f"{form.most_rows} rows")
@pytest.mark.parametrize("architecture", ["sm_75", "sm_90a"])  # the oldest instructions, and the newest
def test_products_of_several_rows(architecture, form) -> None:
    assert shared_bytes(compile_cubin(form.build(form.most_warps), architecture), "exl2_decode") <= STATIC_BYTES


@pytest.mark.parametrize(("architecture", "limit"), [("sm_75", 64 << 10), ("sm_80", 163 << 10), ("sm_90a", 227 << 10)])
@pytest.mark.parametrize("rows", [16, 32, 64])
def test_products_of_many_rows(architecture, limit, rows) -> None:
    """With their barriers, the chunks under way fit into a thread block's shared memory."""
    form = batch.choose(rows, architecture == "sm_90a", limit)
    declared = shared_bytes(compile_cubin(form.build, architecture), form.name)
    assert form.stages > 2
    assert form.shared_bytes + declared <= limit


def shared_bytes(cubin: bytes, kernel: str) -> int:
    """What a kernel declares, and what is kept for the driver: the size of its section in the ELF file."""
    (sections,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<3H", cubin, 0x3A)
    headers = [struct.unpack_from("<2I4Q2I2Q", cubin, sections + size * i) for i in range(count)]
    start = headers[names][4]
    found = {cubin[start + header[0] :].split(b"\0", 1)[0].decode(): header[5] for header in headers}
    return found[f".nv.shared.{kernel}"]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.most_rows} rows")
def test_products_on_cards_with_little_shared_memory(form) -> None:
    """Fewer warps, for each of which the compiler has more registers."""
    assert len(compile_cubin(form.build(2), "sm_75")) > 1000


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_that_is_around_products(architecture) -> None:
    half = torch.float16
    builds = [
        Build("exl2_stream.cu"),
        activations(half, half),
        DENSE[half],
        gather.build(half, half, half, 1),
    ]
    assert all(len(compile_cubin(build, architecture)) > 1000 for build in builds)


@pytest.mark.parametrize("architecture", ["sm_75", "sm_90a"])
def test_activations_of_every_type(architecture) -> None:
    builds = [activations(kind, torch.bfloat16) for kind in KINDS]
    assert all(len(compile_cubin(build, architecture)) > 1000 for build in builds)


@pytest.mark.parametrize("architecture", ["sm_75", "sm_90a"])
@pytest.mark.parametrize("dtype", HALF)
def test_prompts(architecture, dtype) -> None:
    builds = [DENSE[dtype], gather.build(torch.float32, dtype, dtype, 2), gather.build(dtype, dtype, dtype, 1)]
    builds += [gather.build(dtype, dtype, dtype, 1, form) for form in (gather.Form.BLOCKS, gather.Form.CORES)]
    assert all(len(compile_cubin(build, architecture)) > 1000 for build in builds)


def test_an_unknown_card_is_one_line() -> None:
    with pytest.raises(KernelError, match=r"exl2_stream\.cu does not compile for sm_1 ") as caught:
        compile_cubin(Build("exl2_stream.cu"), "sm_1")
    assert len(str(caught.value).splitlines()) == 1


def test_compiled_code_is_kept_and_found_again(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("POLYBIT_CACHE", str(tmp_path))
    build = activations(torch.float16, torch.float16)
    code = compiling.cached_cubin(build, "sm_80")
    monkeypatch.setattr(compiling, "compile_cubin", lambda *_: pytest.fail("compiled again"))
    assert compiling.cached_cubin(build, "sm_80") == code
    (kept,) = (tmp_path / "cuda").iterdir()
    assert kept.suffix == ".cubin"


def test_processes_that_compile_the_same_at_once_do_not_meet(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("POLYBIT_CACHE", str(tmp_path))
    together, code = Barrier(8), bytes(1 << 20)

    def compile_slowly(*_: object) -> bytes:
        together.wait(10)
        return code

    monkeypatch.setattr(compiling, "compile_cubin", compile_slowly)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: compiling.cached_cubin(Build("exl2_stream.cu"), "sm_80"), range(8)))
    assert found == [code] * 8
    (kept,) = (tmp_path / "cuda").iterdir()
    assert kept.read_bytes() == code


def test_another_source_is_another_kernel() -> None:
    builds = (Build("exl2_stream.cu"), Build.of("exl2_stream.cu", {"N": 1}), Build("activations.cu"))
    names = {compiling.fingerprint(build, arch) for build in builds for arch in ("sm_80", "sm_90")}
    assert len(names) == 6
