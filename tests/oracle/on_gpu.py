"""A tiny model on the CPU in float32, as the reference computes it, and the same folder on a GPU."""

from dataclasses import dataclass
from functools import cached_property
from math import inf
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from closeness import assert_close
from greedy import near_ties
from oracle.test_oracle import CASES, tokens
from oracle.tiny import save_tiny
from packed_model import pack_model
from polybit.cache import PAGE_TOKENS, KVPool
from polybit.generator import Engine
from polybit.model.load import load
from polybit.model.model import Model
from polybit.model.options import LoadOptions
from polybit.model.source import open_model
from polybit.modules.mlp import SparseMoe
from polybit.modules.step import whole_rows
from polybit.text import Tokenizer

NEW_TOKENS = 24
SEEDS = range(1, 9)


@dataclass(frozen=True)
class Pair:
    folder: Path
    max_seq_len: int | None
    dtype: torch.dtype  # on the GPU

    @classmethod
    def of(cls, name: str, folder: Path, packed: bool) -> "Pair":
        """Case `name`: plain matrices in float32, or packed ones of every width, which kernels read in float16."""
        case = CASES[name]
        save_tiny(case.architecture, folder, **case.overrides)
        if packed:
            pack_model(folder)
        return cls(folder, case.max_seq_len, torch.float16 if packed else torch.float32)

    @cached_property
    def cpu(self) -> Model:
        return self._load("cpu", torch.float32)

    @cached_property
    def gpu(self) -> Model:
        return self._load("cuda", self.dtype)

    @cached_property
    def prompt(self) -> Tensor:
        """Random tokens. Where there are experts, of several prompts the one whose closest choice of them is clearest.

        Where a router is undecided, rounding sends a token elsewhere, and what follows is another computation.
        """
        return max(map(tokens, SEEDS), key=self._least_margin)

    def _least_margin(self, prompt: Tensor) -> float:
        """Between the last expert chosen and the first left out, over all tokens and layers, in logits."""
        margins, route = [inf], SparseMoe._route

        def watched(moe: SparseMoe, x: Tensor) -> tuple[Tensor, Tensor]:
            ranked = (x.float() @ moe.router.float().T).sort(dim=-1, descending=True).values
            margins.append((ranked[:, moe.top_k - 1] - ranked[:, moe.top_k]).min().item())
            return route(moe, x)

        with patch.object(SparseMoe, "_route", watched):
            logits(self.cpu, prompt)
        return min(margins)

    def assert_logits_agree(self) -> None:
        assert_close(logits(self.gpu, self.prompt).to(self.dtype), logits(self.cpu, self.prompt), "model")

    def assert_greedy_tokens_agree(self) -> None:
        """Decoded one by one over a cache, in captured steps where the model can; the CPU reads them in one pass."""
        said = self.say()
        whole = torch.cat([self.prompt, torch.tensor(said)])
        seen = logits(self.cpu, whole)[len(self.prompt) - 1 : -1, : Tokenizer.open(self.folder).vocab_size]
        near_ties(said, seen, self.dtype)

    def say(self) -> list[int]:
        pool = KVPool(self.gpu.spec, PAGE_TOKENS, self.gpu.dtype, self.gpu.device, self.gpu.backend)
        engine = Engine(self.gpu, Tokenizer.open(self.folder), pool, self.folder)
        settings = {"temperature": 0, "max_tokens": NEW_TOKENS, "ignore_eos": True}
        return list(engine.generate(self.prompt.tolist(), **settings).tokens)

    def _load(self, device: str, dtype: torch.dtype) -> Model:
        name, backend = str(dtype).removeprefix("torch."), "reference" if device == "cpu" else None
        options = LoadOptions(device=device, dtype=name, backend=backend, max_seq_len=self.max_seq_len, unpacked=False)
        return load(open_model(self.folder, options))


def logits(model: Model, prompt: Tensor) -> Tensor:
    """[T, V] on the CPU"""
    return model.forward(prompt.to(model.device), *whole_rows(1, len(prompt), model.device)).cpu()
