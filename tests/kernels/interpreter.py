"""What Triton 3.6's interpreter lacks, mended for the tests."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch


@contextmanager
def mended() -> Iterator[None]:
    """NumPy 2.4 no longer takes an array of one number for an integer; bfloat16 is cut off and multiplied as uint16."""
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    patch_tensor, dot, cast = interpreter._patch_lang_tensor, builder.create_dot, builder.cast_impl

    def patch_tensor_with_index(tensor, scope) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch_tensor_with_index)
        monkeypatch.setattr(
            builder, "create_dot", lambda self, a, b, *others: dot(self, _widened(a), _widened(b), *others)
        )
        monkeypatch.setattr(builder, "cast_impl", lambda self, x, kind: cast(self, _rounded_for(x, kind), kind))
        yield


def _widened(handle):
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _rounded_for(handle, kind):
    """As it is, except fp32 on its way to bfloat16: rounded to nearest even there, so that cutting off is exact."""
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    if (handle.dtype.scalar, kind.scalar) != (tl.float32, tl.bfloat16):
        return handle
    rounded = torch.from_numpy(np.ascontiguousarray(handle.data)).bfloat16().float().numpy()
    return TensorHandle(rounded, tl.float32)
