"""The inner loop of EXL2 products as LLVM vector code, because Numba's own language has no vectors.

`multiply_tile` is an intrinsic: what it emits becomes part of the Numba function that calls it. It multiplies up to
MAX_ROWS rows of activations, as `activations.py` quantizes them, with one tile of columns, as `layout.py` lays it out:

    y[t, n] = sum over runs r of x_scale[r, t] * w_scale[r, n] * (sum over rows k of r of (q[k, n] - zero) x[t, k])

The inner sum is of integers: activations are two bytes, each of which is multiplied with the weight's byte, four rows
at a time, by what the processor has for that: VNNI on x86, dot products on Arm, pairs of multiplications on AVX2; and
plain vector arithmetic for weights that are too wide for those. Vectors have 16 columns; LLVM splits them where
registers are shorter.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from polybit.errors import KernelError
from polybit.kernels.cpu.inner import emitted
from polybit.kernels.cpu.layout import PLANES, STEPS, TILE, word_places

LANES = 16
VECTORS = TILE // LANES
AHEAD = 8192  # bytes
FEW_ROWS = 2  # which wait for memory; more have enough to do
HIGH_LIMB = 256.0  # of an activation of two bytes, what the upper one counts

Value = Any  # of llvmlite, which has no types
Builder = Any

INT, BYTE, SHORT, FLOAT = ir.IntType(32), ir.IntType(8), ir.IntType(16), ir.FloatType()
INTS, FLOATS = ir.VectorType(INT, LANES), ir.VectorType(FLOAT, LANES)


@dataclass(frozen=True)
class Machine:
    """What the processor that is compiled for can do."""

    dot: Callable[[Builder, Value, Value, Value, int], Value]  # sums + q . x, of weights of so many bits
    num_sums: int  # vectors of sums that fit its registers beside the rest
    permutes_16: bool  # one instruction looks up 16 of 16 floats


def machine_for(context: Any) -> Machine:
    """By the features that Numba compiles for. Raises KernelError where there is no code for any of them."""
    features = set(context.codegen().magic_tuple()[2].split(","))
    if {"+avx512f", "+avx512vnni"} <= features:
        return Machine(dot_vnni_512, 16, True)
    if "+avxvnni" in features:
        return Machine(dot_vnni_256, 4, False)
    if "+avx2" in features:
        return Machine(dot_avx2, 4, "+avx512f" in features)
    if "+dotprod" in features:
        return Machine(dot_arm, 4, False)
    raise KernelError(
        "backend 'cpu' needs AVX2 on x86, or the dot products of Armv8.2, which this processor does not have; "
        "backend 'reference' runs on it"
    )


def check_processor() -> None:
    machine_for(cpu_target.target_context)


# ---- dot products: sums [16] + the four bytes of each lane of q, unsigned, times those of x, signed


def dot_vnni_512(b: Builder, sums: Value, q: Value, x: Value, bits: int) -> Value:
    return _call(b, "llvm.x86.avx512.vpdpbusd.512", sums, (sums, q, x))


def dot_vnni_256(b: Builder, sums: Value, q: Value, x: Value, bits: int) -> Value:
    return _by_parts(b, 2, lambda *part: _call(b, "llvm.x86.avx512.vpdpbusd.256", part[0], part), (sums, q, x))


def dot_avx2(b: Builder, sums: Value, q: Value, x: Value, bits: int) -> Value:
    """Pairs of products saturate at 16 bits, which weights of up to 6 bits cannot reach."""
    return (
        dot_anywhere(b, sums, q, x, bits) if bits > 6 else _by_parts(b, 2, lambda *part: _pairs(b, *part), (sums, q, x))
    )


def _pairs(b: Builder, sums: Value, q: Value, x: Value) -> Value:
    bytes_, shorts = ir.VectorType(BYTE, 32), ir.VectorType(SHORT, 16)
    pairs = _call(b, "llvm.x86.avx2.pmadd.ub.sw", shorts, [b.bitcast(each, bytes_) for each in (q, x)])
    fours = _call(b, "llvm.x86.avx2.pmadd.wd", sums, (pairs, _all(shorts, 1)))
    return b.add(sums, fours)


def dot_arm(b: Builder, sums: Value, q: Value, x: Value, bits: int) -> Value:
    """Both sides are signed, which weights of up to 6 bits do not notice."""
    return (
        dot_anywhere(b, sums, q, x, bits)
        if bits > 6
        else _by_parts(b, 4, lambda *part: _signed(b, *part), (sums, q, x))
    )


def _signed(b: Builder, sums: Value, q: Value, x: Value) -> Value:
    bytes_ = [b.bitcast(each, ir.VectorType(BYTE, 16)) for each in (q, x)]
    return _call(b, "llvm.aarch64.neon.sdot.v4i32.v16i8", sums, (sums, *bytes_))


def dot_anywhere(b: Builder, sums: Value, q: Value, x: Value, bits: int) -> Value:
    for byte in range(4):
        weight = b.and_(b.lshr(q, _all(INTS, 8 * byte)), _all(INTS, 255))
        factor = b.ashr(b.shl(x, _all(INTS, 24 - 8 * byte)), _all(INTS, 24))
        sums = b.add(sums, b.mul(weight, factor))
    return sums


def _by_parts(b: Builder, count: int, action: Callable[..., Value], vectors: Sequence[Value]) -> Value:
    """action on each of `count` parts of vectors of 16."""
    width = LANES // count
    parts = [
        action(*(b.shuffle_vector(each, each, _indices(range(i * width, (i + 1) * width))) for each in vectors))
        for i in range(count)
    ]
    while len(parts) > 1:
        both = _indices(range(2 * parts[0].type.count))
        parts = [b.shuffle_vector(low, high, both) for low, high in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


# ---- a tile


@dataclass(frozen=True)
class Tile:
    """Emits the code of one product; addresses are byte pointers."""

    b: Builder
    machine: Machine
    rows: int
    words: Value
    codes: Value
    runs: Value
    table: Value
    x: Value
    x_sums: Value
    x_scales: Value
    y: Value

    def emit(self, num_runs: Value) -> None:
        """All runs, one after another; y starts at zero."""
        b = self.b
        for at in range(self.rows * VECTORS):
            self.store(_all(FLOATS, 0.0), self.y, 64 * at)
        words, x = cgutils.alloca_once_value(b, self.words), cgutils.alloca_once_value(b, self.x)
        with cgutils.for_range(b, num_runs) as loop:
            index = loop.index
            run = self.at(self.runs, index, 12)
            bits, num_blocks, group = (self.load(INT, run, 4 * i) for i in range(3))
            done = b.append_basic_block("done")
            switch = b.switch(bits, done)
            for width in PLANES:
                block = b.append_basic_block(f"bits{width}")
                switch.add_case(ir.Constant(INT, width), block)
                b.position_at_end(block)
                _Run(self, width, b.load(words), b.load(x), index, group, num_blocks).emit()
                b.branch(done)
            b.position_at_end(done)
            b.store(self.at(b.load(words), b.mul(bits, num_blocks), 4 * TILE), words)
            b.store(self.at(b.load(x), num_blocks, 64 * self.rows), x)

    def at(self, pointer: Value, index: Value, size: int) -> Value:
        return self.b.gep(pointer, [self.b.mul(self.b.sext(index, ir.IntType(64)), ir.Constant(ir.IntType(64), size))])

    def _place(self, kind: Value, pointer: Value, offset: int) -> Value:
        at = self.b.gep(pointer, [ir.Constant(ir.IntType(64), offset)])
        return self.b.bitcast(at, kind.as_pointer())

    def load(self, kind: Value, pointer: Value, offset: int) -> Value:
        return self.b.load(self._place(kind, pointer, offset), align=4 if kind != SHORT else 2)

    def store(self, value: Value, pointer: Value, offset: int) -> None:
        self.b.store(value, self._place(value.type, pointer, offset), align=4)


@dataclass(frozen=True)
class _Run:
    """Rows of one width and one group."""

    tile: Tile
    bits: int
    words: Value
    x: Value
    index: Value
    group: Value
    num_blocks: Value

    def emit(self) -> None:
        """As many vectors of columns at once as there are registers for sums."""
        b, tile = self.tile.b, self.tile
        at_once = max(1, min(VECTORS, tile.machine.num_sums // (2 * tile.rows)))
        with cgutils.for_range(b, ir.Constant(INT, VECTORS // at_once)) as loop:
            first = b.mul(loop.index, ir.Constant(INT, at_once))
            self._emit_vectors(first, range(at_once))

    def _emit_vectors(self, first: Value, vectors: range) -> None:
        b, tile = self.tile.b, self.tile
        starts = tile.at(tile.x_sums, self.index, 8 * tile.rows)
        sums = {
            (v, t, limb): cgutils.alloca_once_value(b, _splat(b, tile.load(INT, starts, 8 * t + 4 * limb)))
            for v in vectors for t in range(tile.rows) for limb in range(2)
        }  # fmt: skip
        column, loaded = tile.at(self.words, first, 4 * LANES), dict[tuple[int, int], Value]()
        with cgutils.for_range(b, self.num_blocks) as loop:
            words = tile.at(column, loop.index, 4 * TILE * self.bits)
            x = tile.at(self.x, loop.index, 64 * tile.rows)
            for step in range(STEPS):
                self._ask_ahead(words, step, vectors)
                self._load_words(words, step, vectors, loaded)
                weights = {v: self._weights(loaded, step, v) for v in vectors}
                for t in range(tile.rows):
                    for limb in range(2):
                        factor = _splat(b, tile.load(INT, x, 64 * t + 32 * limb + 4 * step))
                        for v in vectors:
                            place = sums[v, t, limb]
                            b.store(tile.machine.dot(b, b.load(place), weights[v], factor, self.bits), place)
        for v in vectors:
            vector = b.add(first, ir.Constant(INT, v))
            y, scale = tile.at(tile.y, vector, 4 * LANES), self._scale(vector)
            for t in range(tile.rows):
                self._add(y, t, scale, b.load(sums[v, t, 0]), b.load(sums[v, t, 1]))

    def _ask_ahead(self, words: Value, step: int, vectors: range) -> None:
        """For lines of memory that are needed some blocks later: all where there is much to do to each, else some."""
        if self.tile.rows > FEW_ROWS:
            return
        b, asked = self.tile.b, vectors if self.bits <= 3 else vectors[:1]
        for word in range(step * self.bits // STEPS, (step + 1) * self.bits // STEPS):
            for v in asked:
                at = b.gep(words, [ir.Constant(ir.IntType(64), AHEAD + 4 * (word * TILE + v * LANES))])
                _call(b, "llvm.prefetch.p0i8", ir.VoidType(), (at, INT(0), INT(1), INT(1)))

    def _load_words(self, words: Value, step: int, vectors: range, loaded: dict[tuple[int, int], Value]) -> None:
        """Those that a step is the first to need, in the order of memory."""
        places = [first + step * plane // 8 for first, plane in self._planes() if step * plane % 8 == 0]
        for word in sorted(places, key=lambda word: word_places(self.bits)[word]):
            at = word_places(self.bits)[word] * TILE
            for v in vectors:
                loaded[word, v] = self.tile.load(INTS, words, 4 * (at + v * LANES))

    def _planes(self) -> Iterator[tuple[int, int]]:
        """First word and width of each."""
        planes = PLANES[self.bits]
        return zip(accumulate(planes, initial=0), planes, strict=False)

    def _weights(self, loaded: dict[tuple[int, int], Value], step: int, vector: int) -> Value:
        """One byte for each of four rows, of 16 columns."""
        b, low, parts = self.tile.b, 0, list[Value]()
        for first, plane in self._planes():
            word, place = divmod(step, 8 // plane)
            shift = place * plane - low  # the bits of this plane belong above those of the planes before
            value = loaded[first + word, vector]
            moved = (
                b.lshr(value, _all(INTS, shift)) if shift > 0 else b.shl(value, _all(INTS, -shift)) if shift else value
            )
            mask = ((1 << plane) - 1) << low
            parts.append(moved if mask == 255 else b.and_(moved, _all(INTS, 0x01010101 * mask)))
            low += plane
        return parts[0] if len(parts) == 1 else b.or_(*parts)

    def _scale(self, vector: Value) -> Value:
        """Of each of 16 columns."""
        b, tile = self.tile.b, self.tile
        codes = tile.load(ir.VectorType(SHORT, LANES), tile.at(tile.codes, self.group, 2 * LANES), 0)
        moved = b.lshr(b.zext(codes, INTS), _splat(b, b.mul(vector, ir.Constant(INT, 4))))
        codes = b.and_(moved, _all(INTS, 15))
        table = tile.at(tile.table, self.group, 4 * LANES)
        if tile.machine.permutes_16:
            return _call(b, "llvm.x86.avx512.permvar.sf.512", FLOATS, (tile.load(FLOATS, table, 0), codes))
        return self._round_to_half(b.fmul(self._squares(codes), _splat(b, tile.load(FLOAT, table, 0))))

    def _squares(self, codes: Value) -> Value:
        b = self.tile.b
        roots = b.add(codes, _all(INTS, 1))
        return b.sitofp(b.mul(roots, roots), FLOATS)

    def _round_to_half(self, values: Value) -> Value:
        """To the nearest fp16 value, half to even, by arithmetic that every processor has."""
        b = self.tile.b
        bits = b.bitcast(values, INTS)
        odd = b.and_(b.lshr(bits, _all(INTS, 13)), _all(INTS, 1))
        normal = b.and_(b.add(b.add(bits, _all(INTS, 0xFFF)), odd), _all(INTS, -0x2000))
        subnormal = b.fsub(b.fadd(values, _all(FLOATS, 0.75)), _all(FLOATS, 0.75))  # to a multiple of 2^-24
        magnitude = b.and_(bits, _all(INTS, 0x7FFFFFFF))
        is_small = b.icmp_signed("<", magnitude, _all(INTS, 0x38800000))  # 2^-14, the least normal one
        return b.select(is_small, subnormal, b.bitcast(normal, FLOATS))

    def _add(self, y: Value, row: int, scale: Value, high: Value, low: Value) -> None:
        b, tile = self.tile.b, self.tile
        x_scale = tile.load(FLOAT, tile.at(tile.x_scales, self.index, 4 * tile.rows), 4 * row)
        total = _fma(b, b.sitofp(high, FLOATS), _all(FLOATS, HIGH_LIMB), b.sitofp(low, FLOATS))
        before = tile.load(FLOATS, y, 4 * TILE * row)
        tile.store(_fma(b, total, b.fmul(scale, _splat(b, x_scale)), before), y, 4 * TILE * row)


def _splat(b: Builder, value: Value) -> Value:
    kind = ir.VectorType(value.type, LANES)
    one = b.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(INT, 0))
    return b.shuffle_vector(one, one, _all(INTS, 0))


def _call(b: Builder, name: str, returns: Value, arguments: Sequence[Value]) -> Value:
    kind = getattr(returns, "type", returns)
    signature = ir.FunctionType(kind, [argument.type for argument in arguments])
    return b.call(cgutils.get_or_insert_function(b.module, signature, name), list(arguments))


def _fma(b: Builder, x: Value, y: Value, z: Value) -> Value:
    return _call(b, "llvm.fma.v16f32", x, (x, y, z))


def _all(kind: Value, value: float) -> Value:
    return ir.Constant(kind, [value] * kind.count)


def _indices(values: range) -> Value:
    return ir.Constant(ir.VectorType(INT, len(values)), list(values))


@intrinsic(prefer_literal=True)
def multiply_tile(typing, rows, words, codes, runs, num_runs, table, x, x_sums, x_scales, y):  # type: ignore[no-untyped-def]
    """Addresses, as integers, and the number of runs; `rows` is a constant. y [rows, TILE] fp32 is written."""
    signature = types.void(rows, *[types.intp] * 9)
    count = rows.literal_value

    def emit(context: Any, b: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
        pointers = [b.inttoptr(each, BYTE.as_pointer()) for each in arguments[1:]]
        words, codes, runs, _, table, x, x_sums, x_scales, y = pointers
        tile = Tile(b, machine_for(context), count, words, codes, runs, table, x, x_sums, x_scales, y)
        tile.emit(b.trunc(arguments[4], INT))
        return context.get_dummy_value()

    return signature, emit


ARGUMENTS = 9
SIGNATURE = types.void(*[types.intp] * ARGUMENTS)


@emitted
def call_tile(typing, address, words, codes, runs, num_runs, table, x, x_sums, x_scales, y):  # type: ignore[no-untyped-def]
    """Call a compiled function of SIGNATURE."""
    signature = types.void(*[types.intp] * (1 + ARGUMENTS))

    def emit(context: Any, b: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
        kind = ir.FunctionType(ir.VoidType(), [each.type for each in arguments[1:]])
        b.call(b.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])
        return context.get_dummy_value()

    return signature, emit
