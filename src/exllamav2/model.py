"""ExLlamaV2: the model, empty until it is loaded."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from exllamav2.config import ExLlamaV2Config
from exllamav2.refusal import refuse
from polybit.cli.console import progress as progress_bar
from polybit.errors import RequestError
from polybit.model.load import load
from polybit.model.model import Model
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
        """Read the weights onto the device that polybit chooses."""
        refuse("ExLlamaV2.load", gpu_split=gpu_split, lazy=lazy, stats=stats, callback_gen=callback_gen)
        source = open_model(self.config.folder, self.config.load_options())
        with progress_bar("loading") if progress else nullcontext(callback) as tell:
            self._model = load(source, tell)

    def load_autosplit(
        self,
        cache: "ExLlamaV2Cache",
        reserve_vram: int | list[int] | None = None,
        last_id_only: bool = False,
        callback: Callback | None = None,
        callback_gen: Any = None,
        progress: bool = False,
    ) -> None:
        """Read the weights, then allocate `cache`. `last_id_only` gives the same text either way."""
        refuse("ExLlamaV2.load_autosplit", reserve_vram=reserve_vram)
        self.load(callback=callback, callback_gen=callback_gen, progress=progress)
        cache.allocate()

    def load_tp(self, *args: Any, **kwargs: Any) -> None:
        """Refused: there is no tensor parallelism yet."""
        raise RequestError("ExLlamaV2.load_tp: tensor parallelism is not supported by polybit yet; use load()")

    def unload(self) -> None:
        """Drop the weights."""
        self._model = None
