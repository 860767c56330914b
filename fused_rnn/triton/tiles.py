"""How the kernels address memory, and products of matrices that stay there.

A program owns a batch tile: BLOCK_B sequences from ``first_row`` on. In a (T, B, width) array its rows of time t start
at row t * B + first_row, an int64, because T·B·width passes 2³¹; offsets within a tile are int32. Blocks are powers of
two, as Triton wants them, and masks cut off what does not exist; there, values are zero.

Tuples of several things that go together: ``clock`` is (T, B, reverse, first_row), and per-gate tiles come as one
tuple. ``length`` and ``active``, (BLOCK_B, 1), are a program's lengths and which of its sequences are still running;
both are None where all have T steps.
"""

import triton
import triton.language as tl

# Places ---------------------------------------------------------------------------------------------------------


@triton.jit
def time_of(step, clock):
    """The time of a step; steps count in the order of computation."""
    return step + clock[2] * (clock[0] - 1 - 2 * step)


@triton.jit
def row_of(step, clock):
    """The program's first row at a step, in a (T, B, width) array."""
    return time_of(step, clock).to(tl.int64) * clock[1] + clock[3]


@triton.jit
def columns_before(end, start, BLOCK: tl.constexpr):
    """Which of the BLOCK columns from ``start`` on exist, (1, BLOCK)."""
    return (start + tl.arange(0, BLOCK) < end)[None, :]


@triton.jit
def offsets(width, column, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Of a tile at the top of a matrix."""
    return tl.arange(0, BLOCK_R)[:, None] * width + (column + tl.arange(0, BLOCK_C))[None, :]


@triton.jit
def plane(memory, index, width, BLOCK_B: tl.constexpr):
    """Number ``index`` of the (BLOCK_B, width) matrices that follow one another in memory."""
    return memory + index * (BLOCK_B * width)


# Lengths --------------------------------------------------------------------------------------------------------
# Where lengths are None these end without a return, which is None too: Triton 3.6 does not compile ``return None``.


@triton.jit
def load_lengths(lengths, first_row, rows):
    if lengths is not None:
        return tl.load(lengths + first_row + tl.arange(0, rows.shape[0])[:, None], mask=rows, other=0)


@triton.jit
def active_at(step, clock, length):
    if length is not None:
        return time_of(step, clock) < length


@triton.jit
def choose(active, new, old):
    """The new value for sequences that are running, the old one for those that have ended."""
    if active is None:
        return new
    else:
        return tl.where(active, new, old)


# Episodes -------------------------------------------------------------------------------------------------------
# As of lengths: where resets are None nothing is returned.


@triton.jit
def begins_at(resets, step, clock, BLOCK_B: tl.constexpr):
    """Which sequences of a program begin a step anew, (BLOCK_B, 1)."""
    if resets is not None:
        row = tl.arange(0, BLOCK_B)[:, None]
        return tl.load(resets + row_of(step, clock) + row, mask=clock[3] + row < clock[1], other=0) != 0


@triton.jit
def anew(begins, beginning, first_row, H, n, mask, state):
    """A state before a step: what it was, or for sequences that begin anew what they begin with, which may be zeros."""
    if begins is None:
        return state
    elif beginning is None:
        return tl.where(begins, tl.zeros_like(state), state)
    else:
        return tl.where(begins, load(beginning, first_row, H, n, mask & begins).to(state.dtype), state)


# Tiles ----------------------------------------------------------------------------------------------------------


@triton.jit
def load(matrix, row, width, column, mask):
    """A tile of ``mask``'s shape with its corner at (row, column), in the matrix's own type."""
    corner = matrix + row * width
    return tl.load(corner + offsets(width, column, mask.shape[0], mask.shape[1]), mask=mask, other=0.0)


@triton.jit
def load_tiles(matrix, row, width, column, distance, COUNT: tl.constexpr, mask):
    """A tuple of COUNT tiles, ``distance`` columns apart."""
    tiles = ()
    for i in tl.static_range(COUNT):
        tiles = tiles + (load(matrix, row, width, column + i * distance, mask),)
    return tiles


@triton.jit
def store(matrix, row, width, column, value, mask):
    corner = matrix + row * width
    place = corner + offsets(width, column, mask.shape[0], mask.shape[1])
    tl.store(place, value.to(matrix.dtype.element_ty), mask=mask)


@triton.jit
def widen(tiles):
    """To float32."""
    wide = ()
    for i in tl.static_range(len(tiles)):
        wide = wide + (tiles[i].to(tl.float32),)
    return wide


@triton.jit
def load_bias(bias, first, size, start, BLOCK: tl.constexpr):
    """A gate's bias from unit ``start`` on, (1, BLOCK) in float32; the gate has ``size`` entries from ``first`` on."""
    n = start + tl.arange(0, BLOCK)
    return tl.load(bias + first + n, mask=n < size, other=0.0).to(tl.float32)[None, :]


@triton.jit
def add_bias(sums, bias, start, size):
    """Add a bias vector, or None, to the tiles of the first gates, of which each has ``size`` units."""
    if bias is None:
        return sums
    else:
        biased = ()
        for g in tl.static_range(len(sums)):
            biased = biased + (sums[g] + load_bias(bias, g * size, size, start, sums[g].shape[1]),)
        return biased


# Weights --------------------------------------------------------------------------------------------------------


@triton.jit
def load_weight(
    weight, first: tl.constexpr, K: tl.constexpr, N: tl.constexpr, TRANSPOSED: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A whole right operand (K, N), padded to (BLOCK_K, BLOCK_N), which begins at row ``first`` of a matrix.

    TRANSPOSED: the matrix has the operand's columns as rows, as torch keeps weights.
    """
    k = tl.arange(0, BLOCK_K)[:, None]
    n = tl.arange(0, BLOCK_N)[None, :]
    place = (first + n) * K + k if TRANSPOSED else (first + k) * N + n
    return tl.load(weight + place, mask=(k < K) & (n < N), other=0.0)


@triton.jit
def add_products(
    sums, left, weight, first, n, K, N, TRANSPOSED: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr
):
    """Add to each sum, one per gate, columns from ``n`` on of the product of a left and a right operand.

    The left operand is a plane (BLOCK_B, K), the same for all. The right ones, (K, N), follow one another in
    ``weight`` from row ``first`` on, laid out as for ``load_weight``. K and N are padded to whole blocks, so nothing
    is masked.

    In float32 one chain of additions over all of K would round far more than a matrix library does. There PART products
    at a time are summed by themselves, and these parts added to the sums.
    """
    BLOCK_B: tl.constexpr = sums[0].shape[0]
    BLOCK_N: tl.constexpr = sums[0].shape[1]
    PART: tl.constexpr = 64  # about the root of K where rounding matters, so that there is no long chain
    IN_PARTS: tl.constexpr = weight.dtype.element_ty == tl.float32
    parts = ()
    for _ in tl.static_range(len(sums)):
        parts = parts + (tl.zeros((BLOCK_B, BLOCK_N), tl.float32),)
    for k in range(0, K, BLOCK_K):
        a = tl.load(left + offsets(K, k, BLOCK_B, BLOCK_K))
        ends = (k + BLOCK_K) % PART == 0  # whether a part does here
        added = ()
        rest = ()
        for g in tl.static_range(len(sums)):
            if TRANSPOSED:
                corner = weight + tl.cast(first + g * N + n, tl.int64) * K
                b = tl.load(corner + offsets(K, k, BLOCK_N, BLOCK_K)).trans()
            else:
                corner = weight + tl.cast(first + g * K + k, tl.int64) * N
                b = tl.load(corner + offsets(N, n, BLOCK_K, BLOCK_N))
            if IN_PARTS:
                part = tl.dot(a, b, parts[g], input_precision=PRECISION)
                added = added + (tl.where(ends, sums[g] + part, sums[g]),)
                rest = rest + (tl.where(ends, 0.0, part),)
            else:
                added = added + (tl.dot(a, b, sums[g], input_precision=PRECISION),)
        sums = added
        if IN_PARTS:
            parts = rest
    if IN_PARTS:
        added = ()
        for g in tl.static_range(len(sums)):
            added = added + (sums[g] + parts[g],)
        sums = added
    return sums
