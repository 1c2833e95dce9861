"""What a forward pass cannot do without: bytes to read and operations to carry out, from the description alone."""

from collections.abc import Callable

from polybit import spec

LinearCost = Callable[[spec.Linear], float]
TokenBytes = Callable[[spec.Attention], int]  # one token's keys and values in one layer


def bits_per_weight(model: spec.Model, stored_bits: LinearCost) -> float:
    """The decoder's average, as conversions are asked for."""
    num_weights = sum(linear.in_features * linear.out_features for linear in model.linears)
    return sum(map(stored_bits, model.linears)) / num_weights


def weight_bytes(model: spec.Model, stored_bits: LinearCost, num_tokens: int) -> float:
    """Weights, as stored, that one pass over `num_tokens` tokens reads at least once.

    Blocks and head; rows of the embedding do not count. Of a mixture of experts, those that so many tokens use on
    average where each token takes its experts at random.
    """
    blocks = sum(_block_cost(block, stored_bits, num_tokens) for block in model.blocks)
    return (blocks + stored_bits(model.head.linear)) / 8


def cache_bytes(model: spec.Model, num_tokens: int, token_bytes: TokenBytes) -> int:
    """Keys and values that one pass over a sequence of `num_tokens` tokens reads; windows see no more than theirs."""
    return sum(token_bytes(block.attn) * min(num_tokens, block.attn.window or num_tokens) for block in model.blocks)


def operations(model: spec.Model, num_tokens: int) -> float:
    """Of the blocks' matrices, a multiplication and an addition for each weight and token that meet."""
    return 2 * num_tokens * sum(_block_cost(block, _num_weights, 1) for block in model.blocks)


def _block_cost(block: spec.Block, cost: LinearCost, num_tokens: int) -> float:
    return sum(map(cost, block.attn.linears)) + _used(block.mlp, num_tokens) * sum(map(cost, block.mlp.linears))


def _used(mlp: spec.Mlp, num_tokens: int) -> float:
    """The share of its matrices that some token goes through."""
    if not isinstance(mlp, spec.SparseMoe):
        return 1.0
    return 1.0 - (1.0 - mlp.top_k / len(mlp.experts)) ** num_tokens


def _num_weights(linear: spec.Linear) -> int:
    return linear.in_features * linear.out_features
