"""Keys and values into the pages of the K/V pool."""

from torch import Tensor


def write_kv(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor) -> None:
    k_pages.flatten(0, 1)[slots] = k.to(k_pages.dtype)
    v_pages.flatten(0, 1)[slots] = v.to(v_pages.dtype)
