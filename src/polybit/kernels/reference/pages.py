"""Keys and values into the pages of the K/V pool."""

from torch import Tensor

from polybit.kernels.pages import Pages
from polybit.kernels.reference.quantized import quantize, turn


def write_kv(k: Tensor, v: Tensor, k_pages: Pages, v_pages: Pages, slots: Tensor) -> None:
    _write(k, k_pages, slots)
    _write(v, v_pages, slots)


def _write(x: Tensor, pages: Pages, slots: Tensor) -> None:
    """x [T, Hkv, D]"""
    if isinstance(pages, Tensor):
        pages.flatten(0, 1)[slots] = x.to(pages.dtype)
        return
    codes, scales = quantize(turn(x, pages.group), pages.bits, pages.group)
    pages.codes.flatten(0, 1)[slots] = codes
    pages.scales.flatten(0, 1)[slots] = scales
