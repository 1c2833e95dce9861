"""Keys and values of running sequences: who holds which page, and the tensors behind them."""

from polybit.cache.holding import Copy, Holding
from polybit.cache.pages import PAGE_TOKENS, PageBook, pages_for
from polybit.cache.pool import KVPool

__all__ = ["PAGE_TOKENS", "Copy", "Holding", "KVPool", "PageBook", "pages_for"]
