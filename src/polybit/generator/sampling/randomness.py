"""Random numbers by a request's own seed and count: the same in any batch, in any order of arrival, on any device."""

MASK = (1 << 64) - 1
STRIDE = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio, odd
PICK, EXCLUDE = 0, 1  # what a token's numbers are for
NUMBERS_A_TOKEN = 2
BITS = 24  # fp32 holds so many below 1 without rounding up to it


def uniform(key: int, count: int) -> float:
    """Number `count` of the stream `key`, of [0, 1). SplitMix64 read at any place (Steele, Lea, Flood, OOPSLA 2014)."""
    return (_mix((_mix(key) + (count + 1) * STRIDE) & MASK) >> (64 - BITS)) / (1 << BITS)


def _mix(word: int) -> int:
    """SplitMix64's finalizer, with Stafford's constants."""
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
    return word ^ (word >> 31)
