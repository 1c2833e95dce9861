"""How good a model is on a text: perplexity, and how far its predictions lie from a reference model's.

Protocol: the whole text is one run of tokens, cut into windows that do not overlap. Each window is a sequence of its
own, and every token but its first is predicted from those before it.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from polybit.errors import RequestError
from polybit.kernels.pages import FULL
from polybit.model.model import Model
from polybit.modules.step import KVStore, QuantizedScratch, Step, whole_rows

MOST_NATS = 700.0  # a token: the exponential of much more is no float, and of a model's garbage enough is said
CHUNK_ELEMENTS = 1 << 26  # logits turned into float64 probabilities at a time: half a gigabyte

EvalProgress = Callable[[int, int], None]  # windows done, windows in all


@dataclass(frozen=True)
class Score:
    """What a text says about a model. The last three are None where there was no reference."""

    perplexity: float
    tokens: int  # scored
    kl: float | None  # mean KL(reference || model) over the scored tokens, in nats
    kl_error: float | None  # its standard error over windows; None for a single window
    top1: float | None  # share of tokens where both models have the same favourite


@dataclass(frozen=True)
class WindowScore:
    """Sums over one window's scored tokens."""

    tokens: int
    nll: float  # of the true tokens, in nats
    kl: float
    agreed: int


def cut_windows(ids: Tensor, length: int, rows: int | None = None, bos: int | None = None, skip: int = 0) -> Tensor:
    """`rows` windows (None: all) of `length` from a text's tokens [n], after `skip` others -> [rows, length].

    With `bos`, each window is that token and the next length - 1 tokens of the text.
    """
    if length < 2:
        raise RequestError(f"a window of {length} tokens holds nothing to predict; use a length of at least 2")
    taken = length if bos is None else length - 1  # tokens of the text in a window
    available, needed = ids.shape[0] // taken, skip + (rows or 1)
    if available < needed:
        raise RequestError(
            f"the text has {ids.shape[0]} tokens, too few for {needed} windows of {length}; "
            "use a longer text, fewer rows or a shorter length"
        )
    last = available if rows is None else needed
    windows = ids[skip * taken : last * taken].view(-1, taken)
    return windows if bos is None else torch.cat([torch.full_like(windows[:, :1], bos), windows], dim=1)


def evaluate(
    model: Model, windows: Tensor, reference: Model | None = None, progress: EvalProgress | None = None
) -> Score:
    """Score `model` on windows [R, L]; with a reference, also its divergence from that model's predictions."""
    if reference is not None:
        check_comparable(model, reference)
    for each in (model, reference):
        if each is not None:
            check_windows(each, windows)
    scores = []
    for window in windows:
        scores.append(score_window(model, reference, window))
        if progress is not None:
            progress(len(scores), windows.shape[0])
    return combine(scores, compared=reference is not None)


def check_comparable(model: Model, reference: Model) -> None:
    """Predictions can be compared only over one vocabulary."""
    found, expected = model.spec.head.linear.out_features, reference.spec.head.linear.out_features
    if found != expected:
        raise RequestError(
            f"the model predicts {found} tokens and the reference {expected}; compare models that share a tokenizer"
        )


def check_windows(model: Model, windows: Tensor) -> None:
    """A model predicts tokens of its vocabulary, within its context."""
    length, token, name = windows.shape[1], int(windows.max()), model.spec.architecture
    if length > model.max_seq_len:
        raise RequestError(
            f"windows of {length} tokens are longer than the {model.max_seq_len} that this {name} reaches; "
            "use a shorter length"
        )
    if token >= model.spec.embedding.num_rows:
        raise RequestError(
            f"the text holds token {token}, but the last of this {name} is {model.spec.embedding.num_rows - 1}; "
            "take the tokenizer files of this very model"
        )


def score_window(model: Model, reference: Model | None, window: Tensor) -> WindowScore:
    """One forward pass of each model over one window [L]."""
    expected = None if reference is None else predictions(reference, window)
    return score_logits(predictions(model, window), window[1:], expected)


def score_logits(logits: Tensor, targets: Tensor, expected: Tensor | None = None) -> WindowScore:
    """Logits [n, V] where targets [n] followed, and a reference's there."""
    targets = targets.to(logits.device)
    nll, kl, agreed = 0.0, 0.0, 0
    expected = None if expected is None else expected.to(logits.device)
    for part in chunks(logits.shape[0], logits.shape[1]):
        log_q = log_probabilities(logits[part])
        nll -= float(log_q.gather(1, targets[part, None]).sum())
        if expected is not None:
            log_p = log_probabilities(expected[part])
            kl += float(divergence(log_p, log_q).sum())
            agreed += int((log_p.argmax(-1) == log_q.argmax(-1)).sum())
    return WindowScore(tokens=targets.shape[0], nll=nll, kl=kl, agreed=agreed)


def predictions(model: Model, window: Tensor) -> Tensor:
    """Logits [L - 1, V] of every token of a window [L] but the last."""
    tokens = window.to(model.device)
    step, store = _whole_window(model, tokens.shape[0])
    return model.forward(tokens, step, store, logits_at=torch.arange(tokens.shape[0] - 1, device=model.device))


def _whole_window(model: Model, length: int) -> tuple[Step, KVStore]:
    step, scratch = whole_rows(1, length, model.device)
    return step, scratch if model.cache == FULL else QuantizedScratch(1, length, model.cache, model.backend)


def log_probabilities(logits: Tensor) -> Tensor:
    """[n, V] -> float64: differences of nearly equal distributions drown in float32's rounding."""
    return F.log_softmax(logits.double(), dim=-1)


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of rows of log probabilities, [n, V] each -> [n]. A token that p rules out adds nothing."""
    gap = torch.where(log_p.isneginf(), 0.0, log_p - log_q)
    return (log_p.exp() * gap).sum(-1)


def chunks(rows: int, width: int) -> Iterator[slice]:
    """Slices of `rows` rows of `width` numbers, each of at most CHUNK_ELEMENTS numbers (but at least one row)."""
    size = max(1, CHUNK_ELEMENTS // width)
    return (slice(start, start + size) for start in range(0, rows, size))


def combine(scores: list[WindowScore], compared: bool) -> Score:
    tokens = sum(score.tokens for score in scores)
    perplexity = math.exp(min(sum(score.nll for score in scores) / tokens, MOST_NATS))
    if not compared:
        return Score(perplexity, tokens, None, None, None)
    means = [score.kl / score.tokens for score in scores]
    kl = sum(score.kl for score in scores) / tokens
    top1 = sum(score.agreed for score in scores) / tokens
    return Score(perplexity, tokens, kl, standard_error(means), top1)


def standard_error(values: list[float]) -> float | None:
    """Of the mean of independent values; None where there is one value only."""
    n = len(values)
    if n < 2:
        return None
    mean = sum(values) / n
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)
