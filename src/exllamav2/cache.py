"""Caches: the K/V pool that a generator works in, by the bits that it holds of keys and values."""

from typing import Any

from exllamav2.model import ExLlamaV2
from exllamav2.passes import OwnRows
from exllamav2.refusal import refuse, refused
from polybit.cache import PAGE_TOKENS, KVPool, pages_for
from polybit.errors import RequestError
from polybit.kernels.pages import FULL, KVBits


class ExLlamaV2Cache:
    """Room for batch_size sequences of max_seq_len tokens (the config's where -1), in the model's activation type."""

    bits = FULL

    def __init__(
        self,
        model: ExLlamaV2,
        batch_size: int = 1,
        max_seq_len: int = -1,
        copy_from: Any = None,
        lazy: bool = False,
        num_key_value_heads: int | None = None,
        fixed_device: Any = None,
    ) -> None:
        """`lazy`: memory is taken by `model.load_autosplit(cache)`, or at first use."""
        refuse(
            type(self).__name__, copy_from=copy_from, num_key_value_heads=num_key_value_heads, fixed_device=fixed_device
        )
        self.model = model
        self.batch_size = batch_size
        self.max_seq_len = model.config.max_seq_len if max_seq_len == -1 else max_seq_len
        self._pool: KVPool | None = None
        self.own = OwnRows()  # of `model.forward`
        if batch_size < 1 or self.max_seq_len < 1:
            raise RequestError(f"batch_size is {batch_size} and max_seq_len {max_seq_len}, expected at least 1 each")
        if not lazy:
            self.allocate()

    @property
    def pool(self) -> KVPool:
        """polybit's pool."""
        if self._pool is None:
            self.allocate()
        assert self._pool is not None
        return self._pool

    def allocate(self) -> None:
        """Take the memory. Raises RequestError before the model is loaded, OutOfMemory where there is not enough."""
        model = self.model.inner
        self._pool = KVPool(model.spec, self.num_tokens, model.dtype, model.block_devices, model.backend, self.bits)

    @property
    def num_tokens(self) -> int:
        """Of all sequences together, in whole pages."""
        return pages_for(self.batch_size * self.max_seq_len) * PAGE_TOKENS

    @property
    def current_seq_len(self) -> int:
        """Tokens that `model.forward` has stored of each row. A lower number forgets the last of them."""
        return self.own.length

    @current_seq_len.setter
    def current_seq_len(self, length: int) -> None:
        if not 0 <= length <= self.own.length:
            raise RequestError(f"current_seq_len is {length!r}, expected 0 to the {self.own.length} that are stored")
        self.own.truncate(length, self.pool)

    def check_rows(self, count: int) -> None:
        """Raises RequestError where `model.forward` cannot go on with so many rows."""
        held = len(self.own.rows)
        if held and count != held:
            raise RequestError(
                f"ExLlamaV2.forward: input_ids has {count} rows, but the cache holds tokens of {held}; give as many, "
                "or call cache.reset() first"
            )
        if count > self.batch_size:
            raise RequestError(
                f"ExLlamaV2.forward: input_ids has {count} rows, but the cache is made for {self.batch_size}; make it "
                f"with batch_size={count}"
            )

    def reset(self) -> None:
        """Forget what `model.forward` has stored, and give its pages back."""
        self.current_seq_len = 0

    clone = refused("ExLlamaV2Cache.clone", "make another cache of the same size")
    copy_states = refused("ExLlamaV2Cache.copy_states", "generators share what prompts have in common by themselves")
    roll_left = refused("ExLlamaV2Cache.roll_left", "keys and values have their positions in them")
    all_tensors = refused("ExLlamaV2Cache.all_tensors", "they are laid out in pages; see cache.pool")
    get_kv_state = refused("ExLlamaV2Cache.get_kv_state", "they are laid out in pages; see cache.pool.pages(layer)")
    store_kv_state = refused("ExLlamaV2Cache.store_kv_state", "model.forward stores them")

    def footprint(self) -> list[int]:
        """Bytes held on each device."""
        return list(self.pool.device_bytes.values())


class ExLlamaV2Cache_Q4(ExLlamaV2Cache):
    """4.5 bits a number: keys and values of 4 bits, with their scales."""

    bits = KVBits(4, 4)


class ExLlamaV2Cache_Q6(ExLlamaV2Cache):
    """6.5 bits a number: keys of 8 bits, values of 4."""

    bits = KVBits(8, 4)


class ExLlamaV2Cache_Q8(ExLlamaV2Cache):
    """8.5 bits a number: keys and values of 8 bits."""

    bits = KVBits(8, 8)


class ExLlamaV2Cache_8bit:
    """FP8 by cutting halves in two, which the original's dynamic generator does not take either."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise RequestError(
            "ExLlamaV2Cache_8bit is not supported by polybit; use ExLlamaV2Cache_Q8, which is as small and more precise"
        )


class ExLlamaV2Cache_TP:
    """Refused: there is no tensor parallelism yet."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise RequestError("ExLlamaV2Cache_TP is not supported by polybit yet; use ExLlamaV2Cache")
