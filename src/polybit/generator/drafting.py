"""Who guesses tokens for a model: checked against it, planned beside it, and loaded."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from polybit import spec
from polybit.cache import KVPool
from polybit.errors import ConfigError
from polybit.fields import check_kinds
from polybit.generator.forward import Forward
from polybit.generator.graphs import decode_graphs
from polybit.generator.speculative import ModelDrafter
from polybit.model.load import build
from polybit.model.machine import without
from polybit.model.model import Model
from polybit.model.plan import Machine
from polybit.model.setup import Setup, set_up, tell
from polybit.model.source import ModelSource, open_model
from polybit.text import Tokenizer

log = logging.getLogger(__name__)

MOST_DRAFT_TOKENS = 32


@dataclass(frozen=True)
class DraftOptions:
    """ConfigError for what is out of range or contradicts itself."""

    draft: str | None = None  # folder or Hub id of a smaller model with the same vocabulary; None: no such model
    ngram_draft: bool = False  # guess that a text goes on as it did before, where it repeats itself
    num_draft_tokens: int = 4  # guesses for each request in a step, at most

    def __post_init__(self) -> None:
        check_kinds(self, ConfigError)
        if not 1 <= self.num_draft_tokens <= MOST_DRAFT_TOKENS:
            raise ConfigError(
                f"num_draft_tokens is {self.num_draft_tokens}, expected a whole number from 1 to {MOST_DRAFT_TOKENS}"
            )
        if self.draft is not None and self.ngram_draft:
            raise ConfigError(f"ngram_draft is True beside the draft model {self.draft}; give one of them")


def open_draft(name: Path | str, target: ModelSource, tokenizer: Tokenizer) -> ModelSource:
    """A model that is to guess for `target`, as it was loaded itself, and reaching as far: beyond what it was made for
    it guesses worse, and nothing else.

    Raises ConfigError where its vocabulary is another one.
    """
    own = replace(target.options, max_seq_len=None, rope_scale=None, rope_alpha=None, rope_yarn=None, offload=False)
    draft = open_model(name, own)
    check_vocabulary(draft.folder, draft.spec, tokenizer, target.folder, target.spec)
    reach = target.spec.max_seq_len
    if draft.spec.positions is not None and draft.spec.max_seq_len < reach:
        log.warning("the draft has %d learned positions, so the context is no longer", draft.spec.max_seq_len)
        return draft
    return replace(draft, spec=replace(draft.spec, max_seq_len=reach))


def check_vocabulary(folder: Path, draft: spec.Model, ours: Tokenizer, target: Path, model: spec.Model) -> None:
    """Whether the draft in `folder` has the tokens of its target's tokenizer. Raises ConfigError."""
    theirs, size = Tokenizer.open(folder), vocabulary_of(ours, model)
    if theirs.vocabulary != ours.vocabulary:
        longest = max(theirs.vocab_size, ours.vocab_size)
        first = next((i for i in range(longest) if theirs.token_of(i) != ours.token_of(i)), longest)
        raise ConfigError(
            f"{folder} cannot be the draft of {target}: its token {first} is {_named(theirs, first)}, expected "
            f"{_named(ours, first)}; take a draft with the same vocabulary, which is one of the same family"
        )
    if draft.embedding.num_rows < size:
        raise ConfigError(
            f"{folder} cannot be the draft of {target}: it has embeddings of {draft.embedding.num_rows} tokens, "
            f"expected all {size}; take a draft of the same family"
        )


def vocabulary_of(tokenizer: Tokenizer, model: spec.Model) -> int:
    """Tokens that a model may say."""
    return min(tokenizer.vocab_size, model.embedding.num_rows)


@dataclass(frozen=True)
class PlannedDraft:
    source: ModelSource
    setup: Setup
    left: Machine  # what it leaves to its target

    @property
    def num_bytes(self) -> int:
        return self.setup.plan.ram + sum(share.total for share in self.setup.plan.shares)

    def load(self, cache_tokens: int, num_tokens: int, vocab_size: int) -> ModelDrafter:
        """`cache_tokens`: of its target's pool, no more than it was planned with. The others: of model_drafter."""
        tell(self.setup, self.source)
        model = build(self.source, self.setup)
        pool = KVPool(model.spec, cache_tokens, model.dtype, model.block_devices, model.backend, model.cache)
        return model_drafter(model, pool, num_tokens, vocab_size, self.source.options.graphs)


def plan_draft(draft: ModelSource, cache_tokens: int, machine: Machine) -> PlannedDraft:
    """With keys and values of `cache_tokens`. Raises OutOfMemory where it does not fit even alone."""
    setup = set_up(draft, cache_tokens, machine)
    taken = {share.device: share.total for share in setup.plan.shares}
    left = without(machine, [taken.get(budget.device, 0) for budget in machine.budgets])
    return PlannedDraft(draft, setup, replace(left, ram=machine.ram - setup.plan.ram))


def model_drafter(model: Model, pool: KVPool, num_tokens: int, vocab_size: int, use_graphs: bool) -> ModelDrafter:
    """`pool`: the draft's own, of as many pages as its target's. `vocab_size`: tokens that the target may say."""
    return ModelDrafter(Forward(model, pool, decode_graphs(model, pool, use_graphs)), num_tokens, vocab_size)


def _named(tokenizer: Tokenizer, token: int) -> str:
    name = tokenizer.token_of(token)
    return "missing" if name is None else repr(name)
