"""What each option of a matrix would cost in nats, and the options worth having: as many bits for each row as it needs.

Rows come in blocks of 32, sorted by how much their errors matter. Rounding each block with every number of bits says
what it costs there; for a price of a bit, a matrix's best layout then gives each block the number of bits at which
cost and price together are least. One price for all of a module's matrices makes one of its options.
"""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from polybit.format.exl2 import Group, Layout, storage_bits
from polybit.kernels.rounding import Rounding
from polybit.quantizer.candidates import ParameterSet
from polybit.quantizer.hessian import Rows
from polybit.quantizer.measure import MIN_ACCURACY, MeasuredOption
from polybit.quantizer.scales import fit_scales
from polybit.quantizer.slots import Slot

BLOCK = 32  # rows
WIDTHS = (8, 6, 5, 4, 3, 2)
# Small groups pay for their scales, but for two bits, which leave scales little to follow.
GROUP_SIZES: Mapping[int, int] = {8: 32, 6: 32, 5: 32, 4: 32, 3: 32, 2: 64}
NUM_MAXIMA = 12  # half of what rounding tries
SHARE_UNITS = 1 << 20  # in a whole, of which the rows' shares are multiples
PRICES_AN_OCTAVE = 2  # a bit more of every weight divides its cost by four, two octaves

Table = NDArray[np.float64]  # [widths, blocks]


def block_costs(weight: Tensor, order: Rows, columns: Tensor, rounding: Rounding) -> Table:
    """The nats that each block of weight [K, N] costs at each width; columns [N] as in Sensitivity."""
    w = weight[order.perm]
    table = np.empty((len(WIDTHS), -(-len(w) // BLOCK)))
    for costs, bits in zip(table, WIDTHS, strict=True):
        whole = len(w) // GROUP_SIZES[bits] * GROUP_SIZES[bits]
        for rows, size in ((slice(0, whole), GROUP_SIZES[bits]), (slice(whole, len(w)), len(w) - whole)):
            if rows.start < rows.stop:
                groups, weights = w[rows].unflatten(0, (-1, size)), order.weights[rows].unflatten(0, (-1, size))
                found = fit_scales(groups, weights, columns, bits, rounding, NUM_MAXIMA).cost.cpu().numpy() / 2
                num_blocks = size // BLOCK
                costs[rows.start // BLOCK : rows.stop // BLOCK] = (found / num_blocks).repeat(num_blocks)
    return table


def options_of(slot: Slot, tables: Mapping[str, Table]) -> list[MeasuredOption]:
    """From fewest to most bits; `tables` by key of the matrix. The accuracy of one is 1 - sqrt(nats)."""
    by_role = {role: np.sum([tables[linear.key] for linear in linears], 0) for role, linears in slot.roles.items()}
    bits = {
        role: _block_bits(sum(linear.padded_out_features for linear in linears)) for role, linears in slot.roles.items()
    }
    found = dict[int, MeasuredOption]()
    prices = np.array(list(_prices(by_role.values(), bits.values())))
    by_price = {role: _cheapest(table, bits[role], prices) for role, table in by_role.items()}
    for i in range(len(prices)):
        chosen = {role: widths[i] for role, widths in by_price.items()}
        sets = {role: _parameter_set(widths) for role, widths in chosen.items()}
        nats = sum(float(by_role[role][widths, range(len(widths))].sum()) for role, widths in chosen.items())
        num_bits = slot.num_bits(sets)
        found[num_bits] = MeasuredOption(max(MIN_ACCURACY, 1 - nats**0.5), num_bits, sets)
    return [found[num_bits] for num_bits in sorted(found)]


def set_within(table: Table, num_columns: int, num_bits: int) -> ParameterSet:
    """The dearest set for one matrix of these block costs that takes at most `num_bits`, else the cheapest there is."""
    bits, rows = _block_bits(num_columns), BLOCK * table.shape[1]
    prices = np.array(list(_prices([table], [bits], 32)))
    sets = [_parameter_set(widths) for widths in _cheapest(table, bits, prices)]
    fitting = [found for found in sets if storage_bits(found.layout(rows), num_columns, False) <= num_bits]
    return fitting[-1] if fitting else sets[0]


def extremes(slot: Slot) -> list[int]:
    """Bits of the smallest and the largest option that any prices lead to."""
    return [
        slot.num_bits({role: ParameterSet((bits,), (1.0,), (GROUP_SIZES[bits],)) for role in slot.roles})
        for bits in (min(WIDTHS), max(WIDTHS))
    ]


def _block_bits(num_columns: int) -> Table:
    """[widths]: what a block of that many columns takes at each width, scales included."""
    groups = [Group(bits, GROUP_SIZES[bits]) for bits in WIDTHS]
    return np.array([storage_bits(Layout((group,)), num_columns, False) * BLOCK / group.rows for group in groups])


def _prices(tables: Iterable[Table], bits: Iterable[Table], an_octave: int = PRICES_AN_OCTAVE) -> Iterator[float]:
    """Nats a bit, from so high that all is at two bits to so low that all is at eight."""
    rates = [
        (table[1:] - table[:-1]) / (width[:-1] - width[1:])[:, None] for table, width in zip(tables, bits, strict=True)
    ]
    every = np.concatenate([rate[rate > 0] for rate in rates])
    yield np.inf
    if len(every):
        lowest, highest = np.floor(np.log2([every.min(), every.max()]))
        yield from 2.0 ** np.arange(highest + 1, lowest - 1, -1 / an_octave)
    yield 0.0


def _cheapest(table: Table, bits: Table, prices: Table) -> NDArray[np.int64]:
    """[P, blocks], for prices [P]: each block's width by its index, never more bits below than above, with the least
    cost + price * bits."""
    whole = table + prices[:, None, None] * bits[:, None]  # [P, widths, blocks]
    whole[np.isinf(prices)] = bits[:, None]
    best, came_from, every = whole[..., 0], [], np.arange(len(bits))
    for block in range(1, table.shape[1]):
        least = np.minimum.accumulate(best, 1)
        from_above = np.maximum.accumulate(np.where(best == least, every, 0), 1)
        came_from.append(from_above)
        best = np.take_along_axis(best, from_above, 1) + whole[..., block]
    path = [best.argmin(1)]
    for from_above in reversed(came_from):
        path.append(np.take_along_axis(from_above, path[-1][:, None], 1)[:, 0])
    return np.stack(path[::-1], 1)


def _parameter_set(widths: NDArray[np.int64]) -> ParameterSet:
    """Shares that a layout rounds up to just these blocks: half a block less than they hold.

    They are binary fractions, which sum to exactly 1 in whatever order a reader adds them.
    """
    counts = {WIDTHS[w]: int((widths == w).sum()) for w in dict.fromkeys(widths.tolist())}
    shares = [round((count - 0.5) / len(widths) * SHARE_UNITS) / SHARE_UNITS for count in list(counts.values())[:-1]]
    shares.append(1 - sum(shares))
    return ParameterSet(tuple(counts), tuple(shares), tuple(GROUP_SIZES[bits] for bits in counts))
