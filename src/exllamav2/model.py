"""ExLlamaV2: the model, empty until it is loaded."""

import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from exllamav2.config import ExLlamaV2Config
from exllamav2.passes import chunks, pass_alone, pass_over
from exllamav2.refusal import refuse, refused
from polybit.cli.console import progress as progress_bar
from polybit.errors import RequestError
from polybit.model.load import load
from polybit.model.machine import this_machine, without
from polybit.model.model import Model
from polybit.model.options import LoadOptions
from polybit.model.plan import Machine
from polybit.model.source import open_model

if TYPE_CHECKING:
    from exllamav2.cache import ExLlamaV2Cache

Callback = Callable[[int, int], None]  # modules loaded, modules in all


class ExLlamaV2:
    def __init__(self, config: ExLlamaV2Config, lazy_load: bool = False, archparams: Any = None) -> None:
        """`lazy_load` is what always happens: weights are read by `load` or `load_autosplit`."""
        refuse("ExLlamaV2", archparams=archparams)
        self.config = config
        self._model: Model | None = None

    @property
    def loaded(self) -> bool:
        return self._model is not None

    @property
    def inner(self) -> Model:
        """polybit's model. Raises RequestError before it is loaded."""
        if self._model is None:
            raise RequestError("the model is not loaded; call model.load() or model.load_autosplit(cache) first")
        return self._model

    def load(
        self,
        gpu_split: list[float] | None = None,
        lazy: bool = False,
        stats: bool = False,
        callback: Callback | None = None,
        callback_gen: Any = None,
        progress: bool = False,
    ) -> None:
        """Read the weights onto the devices that polybit chooses.

        gpu_split: GiB of each GPU for weights and work space; a cache comes on top.
        """
        refuse("ExLlamaV2.load", lazy=lazy, stats=stats, callback_gen=callback_gen)
        split = None if gpu_split is None else _as_option(gpu_split)
        self._load(replace(self.config.load_options(), gpu_split=split), 0, None, callback, progress)

    def load_autosplit(
        self,
        cache: "ExLlamaV2Cache",
        reserve_vram: int | list[int] | None = None,
        last_id_only: bool = False,
        callback: Callback | None = None,
        callback_gen: Any = None,
        progress: bool = False,
    ) -> None:
        """Read the weights onto as many devices as they and `cache` need, then allocate it.

        reserve_vram: bytes to leave free on each. `last_id_only` gives the same text either way.
        """
        refuse("ExLlamaV2.load_autosplit", callback_gen=callback_gen)
        options = replace(self.config.load_options(), cache=str(cache.bits))
        reserves = reserve_vram if isinstance(reserve_vram, list) else [reserve_vram or 0]
        machine = without(this_machine(options), reserves)
        self._load(options, cache.num_tokens, machine, callback, progress)
        cache.allocate()

    def _load(
        self,
        options: LoadOptions,
        cache_tokens: int,
        machine: Machine | None,
        callback: Callback | None,
        progress: bool,
    ) -> None:
        source = open_model(self.config.folder, options)
        with progress_bar("loading") if progress else nullcontext(callback) as tell:
            self._model = load(source, tell, cache_tokens, machine)

    def load_tp(self, *args: Any, **kwargs: Any) -> None:
        """Refused: there is no tensor parallelism yet."""
        raise RequestError("ExLlamaV2.load_tp: tensor parallelism is not supported by polybit yet; use load()")

    load_gen = refused("ExLlamaV2.load_gen", "use load(callback=...), which tells of each module")
    load_autosplit_gen = refused("ExLlamaV2.load_autosplit_gen", "use load_autosplit(cache, callback=...)")
    forward_chunk = refused("ExLlamaV2.forward_chunk", "use forward")
    get_modules = refused("ExLlamaV2.get_modules", "its layers are not the original's; see model.inner.stages")
    modules = property(get_modules)
    modules_dict = property(get_modules)

    def forward(
        self,
        input_ids: Tensor,
        cache: "ExLlamaV2Cache | None" = None,
        input_mask: Any = None,
        preprocess_only: bool = False,
        last_id_only: bool = False,
        loras: Any = None,
        return_last_state: bool = False,
        position_offsets: Any = None,
        abort_event: threading.Event | None = None,
        cpu_logits: bool = False,
    ) -> Tensor | None:
        """Logits [batch, n, vocabulary] fp32 of input_ids [batch, n], which follow what `cache` has of each row.

        `last_id_only`: n is 1; `preprocess_only`: None, and so where `abort_event` was set. Without a cache nothing is
        kept. RequestError where the batch is not the one that the cache holds.
        """
        refuse(
            "ExLlamaV2.forward",
            input_mask=input_mask,
            loras=loras,
            return_last_state=return_last_state,
            position_offsets=position_offsets,
        )
        if input_ids.dim() != 2 or not input_ids.numel():
            raise RequestError("ExLlamaV2.forward: input_ids must be a tensor of ids [batch, n], at least one")
        num_logits = 0 if preprocess_only else 1 if last_id_only else input_ids.shape[1]
        logits = self._pass_in_chunks(input_ids, cache, num_logits, abort_event)
        if logits is None or preprocess_only:
            return None
        whole = torch.cat(logits, 1)[:, -num_logits:]
        return whole.cpu() if cpu_logits else whole

    def _pass_in_chunks(
        self, ids: Tensor, cache: "ExLlamaV2Cache | None", num_logits: int, abort_event: threading.Event | None
    ) -> list[Tensor] | None:
        """The last logits of each chunk, `num_logits` where it is so long; None where the event was set before all."""
        if cache is None:
            is_aborted = abort_event is not None and abort_event.is_set()
            return None if is_aborted else [pass_alone(self.inner, ids, num_logits)]
        cache.check_rows(len(ids))
        found, done = list[Tensor](), 0
        for chunk in chunks(ids, abort_event):
            wanted = min(num_logits, chunk.shape[1])
            found.append(pass_over(self.inner, chunk, cache.own, cache.pool, wanted))
            done += chunk.shape[1]
        return found if done == ids.shape[1] else None

    def unload(self) -> None:
        """Drop the weights."""
        self._model = None


def _as_option(gpu_split: Any) -> str:
    """[10, 22] as polybit writes it."""
    if not isinstance(gpu_split, (list, tuple)) or not all(isinstance(size, (int, float)) for size in gpu_split):
        raise RequestError(f"ExLlamaV2.load: gpu_split is {gpu_split!r:.60}, expected a list of GiB, one for each GPU")
    return ",".join(map(str, gpu_split))
