"""The kernel of `kernels.py`, in Triton's language: Python's syntax, none of its types.

Formulas stand in `statistics.py`, sizes and the way through the grid in `kernels.py`. On a CPU the
same functions are interpreted with NumPy, which knows no bfloat16: what it does to those bits is
done right by hand where INTERPRETED holds.
"""

# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202, PLR0124, PLR0915, PLR0917, SIM300

import triton
import triton.language as tl

# Decided by Triton when a function is decorated, so here and not later.
IS_INTERPRETED = bool(triton.knobs.runtime.interpret)


@triton.jit
def _product(
    hidden,
    weight,
    width,
    hidden_step,
    weight_step,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    IS_EVEN: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """A tile of h W^T in float32; `hidden` (ROWS, 1) and `weight` (1, COLUMNS) are pointers."""
    depth = tl.arange(0, DEPTH)
    hidden += depth[None, :] * hidden_step
    weight += depth[:, None] * weight_step
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(0, width, DEPTH):
        if IS_EVEN:
            h = tl.load(hidden)
            w = tl.load(weight)
        else:
            inside = depth < width - start
            h = tl.load(hidden, mask=inside[None, :], other=0.0)
            w = tl.load(weight, mask=inside[:, None], other=0.0)
        if INTERPRETED:  # which would multiply the bits of bfloat16 as if they were integers
            h = h.to(tl.float32)
            w = w.to(tl.float32)
        # "ieee" is for float32: TF32 would keep 10 bits of 23.
        total = tl.dot(h, w, total, input_precision="ieee")
        hidden += DEPTH * hidden_step
        weight += DEPTH * weight_step
    return total


@triton.jit
def _rounded(z, DTYPE: tl.constexpr, INTERPRETED: tl.constexpr):
    """float32 rounded to the nearest number of a dtype, ties to even, and back in float32."""
    if INTERPRETED and DTYPE == tl.bfloat16:  # which would cut the bits off
        bits = z.to(tl.int32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
        z = tl.where(z == z, nearest.to(tl.float32, bitcast=True), z)
    else:
        z = z.to(DTYPE).to(tl.float32)
    return z


@triton.jit
def _capped(z, cap, inverse, DTYPE: tl.constexpr, INTERPRETED: tl.constexpr):
    """Cap c to c tanh(z / c), every step rounded to the model's dtype."""
    x = _rounded(z * inverse, DTYPE, INTERPRETED)
    square = x * x
    # The series where 1 - 2 / (e^2x + 1) would cancel; its next term is below 1e-7 of the sum.
    near = x * (1.0 - square * (1 / 3 - square * (2 / 15 - square * (17 / 315))))
    far = 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)
    return _rounded(
        _rounded(tl.where(square < 0.04, near, far), DTYPE, INTERPRETED) * cap, DTYPE, INTERPRETED
    )


# These differ from batch to batch, and none of them deserves code of its own.
@triton.jit(do_not_specialize=["n_rows", "n_columns", "n_splits", "per_split"])
def sums_of_share(
    hidden,
    weight,
    bias,
    targets,
    sums,
    best_column,
    n_rows,
    n_columns,
    width,
    n_splits,
    per_split,
    hidden_row,
    hidden_step,
    weight_row,
    weight_step,
    scale,
    cap,
    inverse_cap,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_CAP: tl.constexpr,
    IS_EVEN: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Sums of a tile of rows over `per_split` tiles of the vocabulary.

    Sums: shape (5, n_splits, n_rows) of float32; best_column: (n_splits, n_rows) of int32.
    """
    DTYPE: tl.constexpr = hidden.dtype.element_ty
    # Neighbours in time: GROUP tiles of rows, with all shares of the vocabulary.
    program = tl.program_id(0)
    first = program // (GROUP * n_splits) * GROUP
    height = tl.minimum(tl.cdiv(n_rows, ROWS) - first, GROUP)
    within = program % (GROUP * n_splits)
    row = (first + within % height) * ROWS + tl.arange(0, ROWS)
    split = within // height
    # Beyond the end the last row and column are read again, so that loads need no mask; what comes
    # of them is left out below. Offsets are 64 bits: V x H passes 2^31.
    row_at = tl.minimum(row, n_rows - 1).to(tl.int64)
    target = tl.load(targets + row_at).to(tl.int32)

    # A finite start, and a finite logit beyond the vocabulary: their weight is exactly 0, as is
    # their product with it. Infinity would make it NaN, which only a broken model may.
    maximum = tl.full((ROWS,), -3e38, dtype=tl.float32)
    s = tl.zeros((ROWS,), dtype=tl.float32)
    a = tl.zeros((ROWS,), dtype=tl.float32)
    b = tl.zeros((ROWS,), dtype=tl.float32)
    own = tl.zeros((ROWS,), dtype=tl.float32)
    best = tl.zeros((ROWS,), dtype=tl.int32)
    begin = split * per_split * COLUMNS
    for start in range(begin, tl.minimum(begin + per_split * COLUMNS, n_columns), COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        column_at = tl.minimum(column, n_columns - 1).to(tl.int64)
        z = _product(
            hidden + row_at[:, None] * hidden_row,
            weight + column_at[None, :] * weight_row,
            width,
            hidden_step,
            weight_step,
            ROWS,
            COLUMNS,
            DEPTH,
            IS_EVEN,
            INTERPRETED,
        )
        if HAS_BIAS:  # before the rounding, as in a fused product
            z += tl.load(bias + column_at).to(tl.float32)[None, :]
        z = _rounded(z, DTYPE, INTERPRETED)
        if HAS_SCALE:
            z = _rounded(z * scale, DTYPE, INTERPRETED)
        if HAS_CAP:
            z = _capped(z, cap, inverse_cap, DTYPE, INTERPRETED)
        z = tl.where((column < n_columns)[None, :], z, -3e38)
        own += tl.sum(tl.where(column[None, :] == target[:, None], z, 0.0), axis=1)

        top = tl.max(z, axis=1)
        at = tl.min(tl.where(z == top[:, None], column[None, :], n_columns), axis=1)
        best = tl.where(top > maximum, at, best)
        new = tl.maximum(maximum, top)
        d = maximum - new
        factor = tl.exp(d)
        z -= new[:, None]
        weights = tl.exp(z)
        b = (b + d * (2.0 * a + d * s)) * factor
        a = (a + d * s) * factor + tl.sum(weights * z, axis=1)
        b += tl.sum(weights * z * z, axis=1)
        s = s * factor + tl.sum(weights, axis=1)
        maximum = new

    out = split.to(tl.int64) * n_rows + row
    plane = n_splits.to(tl.int64) * n_rows
    is_row = row < n_rows
    tl.store(sums + out, maximum, mask=is_row)
    tl.store(sums + plane + out, s, mask=is_row)
    tl.store(sums + 2 * plane + out, a, mask=is_row)
    tl.store(sums + 3 * plane + out, b, mask=is_row)
    tl.store(sums + 4 * plane + out, own, mask=is_row)
    tl.store(best_column + out, best, mask=is_row)
