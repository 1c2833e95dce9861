"""Keys and values of running sequences: who owns which page, and the tensors behind them."""

from polybit.cache.pages import PAGE_TOKENS, FreePages, pages_for
from polybit.cache.pool import KVPool

__all__ = ["PAGE_TOKENS", "FreePages", "KVPool", "pages_for"]
