"""The backward kernels: a whole sequence in one launch, against the order of the forward steps.

They leave the gradients of all pre-activations in one matrix d, from which the library makes every weight gradient and
δx afterwards. As in forward, ``backward_resident`` keeps the weights on the chip and δh and δc in registers, and
``backward_streamed`` reads weights block by block in every step and keeps δh and δc in memory.

Phases of a step: the cell's pointwise backward; in the reset-before GRU the product with U_nᵀ and the reset gate; in
multiplicative cells the product with Wᵀ (where h₋ is modulated, Uᵀ) and δm; then δh₋ = Uᵀδ + U_mᵀδm (where h₋ is
modulated, U_mᵀδm alone). ``backward_streamed`` ends each with a barrier, because the next one reads what all threads
of the program wrote.

Operands as of the forward kernels, and d_output (T, B, H), d_h_n, d_c_n (B, H), d_cells (T, B, H), each None where it
is zero; output, cells * and saved of the forward call; gradient_clip, the largest magnitude of a gradient of a
pre-activation. Results: d_h_0, d_c_0 * (B, H); d (T, B, GRADIENTS*H (+ I)), of the pre-activations, then of m; d_input
* (T, B, I), the part of δx that does not pass through W_m; d_h_reset, d_c_reset (B, H) of float32, zeros before, where
there are h_reset and c_reset. BYPASS: part of δh₋ does not pass through U, and the cell
reads h₋.
"""

import triton
import triton.language as tl

from .tiles import (
    active_at,
    add_products,
    anew,
    begins_at,
    choose,
    columns_before,
    load,
    load_lengths,
    load_tiles,
    load_weight,
    offsets,
    plane,
    row_of,
    store,
    widen,
)


@triton.jit
def load_previous(states, initial, resets, beginning, H, n, step, clock, length, mask):
    """A state before a step: what the step before it left in ``states``, or where there is none the initial one.

    Where the step begins anew it is ``beginning``, or zeros.
    """
    before = tl.maximum(step - 1, 0)
    begun = mask & (tl.full((1, 1), step, tl.int32) > 0)  # a block, because the interpreter wants masks to be blocks
    if length is not None:
        begun = begun & active_at(before, clock, length)
    previous = load(states, row_of(before, clock), H, n, begun)
    previous = tl.where(begun, previous, load(initial, clock[3], H, n, mask ^ begun))
    return anew(begins_at(resets, step, clock, mask.shape[0]), beginning, clock[3], H, n, mask, previous)


@triton.jit
def load_step(
    d_output, d_cells, output, cells, saved, h_0, c_0, resets, h_reset, c_reset, H, columns, n, step, clock, length,
    units, SAVED: tl.constexpr, BYPASS: tl.constexpr,
):  # fmt: skip
    """What a step reads of each unit: the saved values, then c₋ or h₋, δ of c and δ of the output where they exist."""
    row = row_of(step, clock)
    tiles = load_tiles(saved, row, columns, n, H, SAVED, units)
    if c_0 is not None:
        tiles = tiles + (load_previous(cells, c_0, resets, c_reset, H, n, step, clock, length, units),)
    if BYPASS:
        tiles = tiles + (load_previous(output, h_0, resets, h_reset, H, n, step, clock, length, units),)
    if d_cells is not None:
        tiles = tiles + (load(d_cells, row, H, n, units),)
    if d_output is not None:
        tiles = tiles + (load(d_output, row, H, n, units),)
    return tiles


@triton.jit
def load_modulation(saved, x, I, columns, column, n, step, clock, inputs):
    """m and x at a step, for multiplicative cells."""
    if x is None:
        return ()
    else:
        row = row_of(step, clock)
        return load(saved, row, columns, column + n, inputs), load(x, row, I, n, inputs)


@triton.jit
def split(keep, row, H, n, mask, d):
    """Of the gradient of a state, what goes on through the cell, and what zoneout leads past it."""
    if keep is None:
        return d, tl.zeros_like(d)
    else:
        part = load(keep, row, H, n, mask).to(tl.float32)
        return (1.0 - part) * d, part * d


@triton.jit
def clip(x, limit):
    """x, or the limit with the sign of x if that is nearer to zero; NaN stays NaN."""
    return tl.where(x > limit, limit, tl.where(x < -limit, -limit, x))


@triton.jit
def store_gradients(d, row, width, H, start, gradients, limit, active, mask):
    """Store gradients of pre-activations, clipped, zero past the end of a sequence; returns them as stored."""
    stored = ()
    for g in tl.static_range(len(gradients)):
        value = choose(active, clip(gradients[g], limit), 0.0).to(d.dtype.element_ty)
        store(d, row, width, g * H + start, value, mask)
        stored = stored + (value,)
    return stored


@triton.jit
def end_episodes(begins, d_beginning, first_row, H, n, mask, d):
    """The gradient of a state before a step that goes on to the step before it; the rest is of what began anew.

    That is summed in memory, because registers are scarce, and few rows of a step begin anew. A barrier orders it.
    """
    if d_beginning is not None:
        place = d_beginning + first_row * H + offsets(H, n, mask.shape[0], mask.shape[1])
        tl.atomic_add(place, d, mask=mask & begins, sem="relaxed")
        tl.debug_barrier()
    return tl.where(begins, 0.0, d)


@triton.jit
def hand_on(operands, first: tl.constexpr, width, tile, gradients, BLOCK_B: tl.constexpr):
    """Put gradients into planes from number ``first`` on, where products find them."""
    for g in tl.static_range(len(gradients)):
        tl.store(plane(operands, first + g, width, BLOCK_B) + tile, gradients[g])


@triton.jit(do_not_specialize=["T", "B", "reverse", "gradient_clip"])
def backward_resident(
    d_output, d_h_n, d_c_n, d_cells, output, cells, saved, x, h_0, c_0, weight_ih, weight_hh, weight_mhh, lengths,
    keep_h, keep_c, resets, h_reset, c_reset, d_h_0, d_c_0, d, d_input, d_h_reset, d_c_reset, T, B, reverse,
    gradient_clip, I: tl.constexpr, H: tl.constexpr,
    GATES: tl.constexpr, SAVED: tl.constexpr, GRADIENTS: tl.constexpr, BYPASS: tl.constexpr,
    CELL_STATE: tl.constexpr, BACKWARD: tl.constexpr, RESET: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    S: tl.constexpr = h_0.dtype.element_ty
    COLUMNS: tl.constexpr = SAVED * H + (0 if x is None else I)
    WIDTH: tl.constexpr = GRADIENTS * H + (0 if x is None else I)
    HIDDEN: tl.constexpr = False if x is None else weight_ih is None  # whether h₋ is modulated
    first_row = tl.program_id(0).to(tl.int64) * BLOCK_B
    clock = (T, B, reverse, first_row)
    rows = (first_row + tl.arange(0, BLOCK_B) < B)[:, None]
    units = rows & columns_before(H, 0, BLOCK_H)
    inputs = rows & columns_before(I, 0, BLOCK_I)
    length = load_lengths(lengths, first_row, rows)

    u = ()
    w = ()
    for g in tl.static_range(GATES):
        u = u + (load_weight(weight_hh, g * H, H, H, False, BLOCK_H, BLOCK_H),)
        if weight_ih is not None:
            w = w + (load_weight(weight_ih, g * H, H, I, False, BLOCK_H, BLOCK_I),)
    if x is not None:
        u_m = load_weight(weight_mhh, 0, I, H, False, BLOCK_I, BLOCK_H)

    dh = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    dc = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    c = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    if d_h_n is not None:
        dh = load(d_h_n, first_row, H, 0, units).to(tl.float32)
    if c_0 is not None:
        c = load(cells, row_of(T - 1, clock), H, 0, units).to(tl.float32)
    if d_c_n is not None:
        dc = load(d_c_n, first_row, H, 0, units).to(tl.float32)
    ahead = load_step(
        d_output, d_cells, output, cells, saved, h_0, c_0, resets, h_reset, c_reset, H, COLUMNS, 0, T - 1, clock,
        length, units, SAVED, BYPASS,
    )  # fmt: skip
    ahead_m = load_modulation(saved, x, I, COLUMNS, SAVED * H, 0, T - 1, clock, inputs)
    for i in range(T):
        step = T - 1 - i
        row = row_of(step, clock)
        active = active_at(step, clock, length)
        here = widen(ahead)  # loaded a step ahead, so that nobody waits for memory
        here_m = widen(ahead_m)
        next = tl.maximum(step - 1, 0)
        ahead = load_step(
            d_output, d_cells, output, cells, saved, h_0, c_0, resets, h_reset, c_reset, H, COLUMNS, 0, next, clock,
            length, units, SAVED, BYPASS,
        )  # fmt: skip
        ahead_m = load_modulation(saved, x, I, COLUMNS, SAVED * H, 0, next, clock, inputs)
        values = here[0:SAVED]
        c_prev = c  # a stand-in in cells without a cell state, as is h₋ in cells that do not read it
        h_prev = c
        if c_0 is not None:
            c_prev = here[SAVED]
            if resets is not None:
                c = load(cells, row, H, 0, units).to(tl.float32)  # of which c₋ of the step after need not be the copy
        dc_here = dc
        if d_cells is not None:
            dc_here = dc + here[SAVED + 1]
        if BYPASS:
            h_prev = here[SAVED]
        dh_here = dh
        if d_output is not None:
            dh_here = dh + here[len(here) - 1]
        dh_here, kept_dh = split(keep_h, row, H, 0, units, dh_here)
        if RESET is None:
            c_made = c
            if keep_c is not None:
                c_made = CELL_STATE(values, c_prev)
            dc_here, kept_dc = split(keep_c, row, H, 0, units, dc_here)
            dh_new, dc_new, gradients = BACKWARD(values, h_prev, c_prev, c_made, dh_here, dc_here, S)
            dc = choose(active, dc_new + kept_dc, dc)
        else:
            dh_new, da_z, da_n = BACKWARD(values[1], values[2], h_prev, dh_here)
            ds = tl.dot(choose(active, clip(da_n, gradient_clip), 0.0).to(S), u[2], input_precision=PRECISION)
            dh_new, da_r = RESET(ds, values[0], h_prev, dh_new)
            gradients = (da_r, da_z, da_n)
        dh_new += kept_dh
        da = store_gradients(d, row, WIDTH, H, 0, gradients, gradient_clip, active, units)
        if not HIDDEN:
            for g in tl.static_range(GATES if RESET is None else 2):
                beside = da[g] if g < GATES - 1 else da[GRADIENTS - 1]
                dh_new = tl.dot(beside, u[g], dh_new, input_precision=PRECISION)
        if x is not None:
            dx_hat = tl.zeros((BLOCK_B, BLOCK_I), tl.float32)
            for g in tl.static_range(GATES):
                dx_hat = tl.dot(da[g], u[g] if HIDDEN else w[g], dx_hat, input_precision=PRECISION)
            dm = store_gradients(d, row, WIDTH, H, GRADIENTS * H, (dx_hat * here_m[1],), gradient_clip, active, inputs)
            dx = dx_hat * here_m[0]
            if HIDDEN:
                dx = clip(dx, gradient_clip)  # of W_m x, a pre-activation too
            store(d_input, row, I, 0, choose(active, dx, 0.0), inputs)
            dh_new = tl.dot(dm[0], u_m, dh_new, input_precision=PRECISION)
        dh = choose(active, dh_new, dh)
        if c_0 is not None:
            c = c_prev
        if resets is not None:
            begins = begins_at(resets, step, clock, BLOCK_B)
            dh = end_episodes(begins, d_h_reset, first_row, H, 0, units, dh)
            if c_0 is not None:
                dc = end_episodes(begins, d_c_reset, first_row, H, 0, units, dc)
    store(d_h_0, first_row, H, 0, dh, units)
    if c_0 is not None:
        store(d_c_0, first_row, H, 0, dc, units)


# Padding, ``states`` and ``operands`` as in forward_streamed, but ``operands`` has BLOCK_B * (GRADIENTS * PADDED_H +
# PADDED_I) values per program.
@triton.jit(do_not_specialize=["T", "B", "reverse", "gradient_clip"])
def backward_streamed(
    d_output, d_h_n, d_c_n, d_cells, output, cells, saved, x, h_0, c_0, weight_ih, weight_hh, weight_mhh, lengths,
    keep_h, keep_c, resets, h_reset, c_reset, d_h_0, d_c_0, d, d_input, d_h_reset, d_c_reset, T, B, reverse,
    gradient_clip, I, H, PADDED_I, PADDED_H, states, operands,
    GATES: tl.constexpr, SAVED: tl.constexpr, GRADIENTS: tl.constexpr, BYPASS: tl.constexpr,
    CELL_STATE: tl.constexpr, BACKWARD: tl.constexpr, RESET: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    S: tl.constexpr = h_0.dtype.element_ty
    columns = SAVED * H + (0 if x is None else I)
    width = GRADIENTS * H + (0 if x is None else I)
    HIDDEN: tl.constexpr = False if x is None else weight_ih is None  # whether h₋ is modulated
    PASSES: tl.constexpr = BYPASS if keep_h is None else True  # whether part of δh₋ does not pass through U
    program = tl.program_id(0).to(tl.int64)
    first_row = program * BLOCK_B
    clock = (T, B, reverse, first_row)
    rows = (first_row + tl.arange(0, BLOCK_B) < B)[:, None]
    length = load_lengths(lengths, first_row, rows)
    # what a tile of units leaves for its own next visit: δh, δc, and the part of δh₋ that does not pass through U
    dh_state = plane(states, program * 3, PADDED_H, BLOCK_B)
    dc_state = plane(dh_state, 1, PADDED_H, BLOCK_B)
    bypass_state = plane(dh_state, 2, PADDED_H, BLOCK_B)
    # left operands of products, which read all units: the gradients of the pre-activations, and δm
    das = operands + program * (BLOCK_B * (GRADIENTS * PADDED_H + PADDED_I))
    dms = plane(das, GRADIENTS, PADDED_H, BLOCK_B)
    zeros = tl.zeros((BLOCK_B, BLOCK_N), tl.float32)

    for n in range(0, PADDED_H, BLOCK_N):
        tile = offsets(PADDED_H, n, BLOCK_B, BLOCK_N)
        units = rows & columns_before(H, n, BLOCK_N)
        dh = zeros
        if d_h_n is not None:
            dh = load(d_h_n, first_row, H, n, units).to(tl.float32)
        tl.store(dh_state + tile, dh)
        dc = zeros
        if d_c_n is not None:
            dc = load(d_c_n, first_row, H, n, units).to(tl.float32)
        if c_0 is not None:
            tl.store(dc_state + tile, dc)
    tl.debug_barrier()
    for i in range(T):
        step = T - 1 - i
        row = row_of(step, clock)
        active = active_at(step, clock, length)
        begins = begins_at(resets, step, clock, BLOCK_B)
        for n in range(0, PADDED_H, BLOCK_N):
            tile = offsets(PADDED_H, n, BLOCK_B, BLOCK_N)
            units = rows & columns_before(H, n, BLOCK_N)
            here = widen(
                load_step(
                    d_output, d_cells, output, cells, saved, h_0, c_0, resets, h_reset, c_reset, H, columns, n, step,
                    clock, length, units, SAVED, BYPASS,
                )
            )  # fmt: skip
            dh = tl.load(dh_state + tile)
            dc = dh  # stand-ins, as in backward_resident
            c = dh
            c_prev = dh
            h_prev = dh
            values = here[0:SAVED]
            if c_0 is not None:
                dc = tl.load(dc_state + tile)
                c = load(cells, row, H, n, units).to(tl.float32)
                c_prev = here[SAVED]
            dc_here = dc
            if d_cells is not None:
                dc_here = dc + here[SAVED + 1]
            if BYPASS:
                h_prev = here[SAVED]
            if d_output is not None:
                dh += here[len(here) - 1]
            dh, kept_dh = split(keep_h, row, H, n, units, dh)
            if RESET is None:
                if keep_c is not None:
                    c = CELL_STATE(values, c_prev)  # that which the cell made
                dc_here, kept_dc = split(keep_c, row, H, n, units, dc_here)
                bypass, dc_new, gradients = BACKWARD(values, h_prev, c_prev, c, dh, dc_here, S)
                da = store_gradients(d, row, width, H, n, gradients, gradient_clip, active, units)
                hand_on(das, 0, PADDED_H, tile, da, BLOCK_B)
                if c_0 is not None:
                    tl.store(dc_state + tile, choose(active, dc_new + kept_dc, dc))
            else:
                bypass, da_z, da_n = BACKWARD(values[1], values[2], h_prev, dh)
                da = store_gradients(d, row, width, H, H + n, (da_z, da_n), gradient_clip, active, units)
                hand_on(das, 1, PADDED_H, tile, da, BLOCK_B)
            if PASSES:
                tl.store(bypass_state + tile, bypass + kept_dh)
        tl.debug_barrier()
        if RESET is not None:
            for n in range(0, PADDED_H, BLOCK_N):
                tile = offsets(PADDED_H, n, BLOCK_B, BLOCK_N)
                units = rows & columns_before(H, n, BLOCK_N)
                first = 2 * PADDED_H
                da_n = plane(das, 2, PADDED_H, BLOCK_B)
                ds = add_products((zeros,), da_n, weight_hh, first, n, PADDED_H, PADDED_H, False, BLOCK_K, PRECISION)
                h_prev = load_previous(output, h_0, resets, h_reset, H, n, step, clock, length, units).to(tl.float32)
                r = load(saved, row, columns, n, units).to(tl.float32)
                bypass, da_r = RESET(ds[0], r, h_prev, tl.load(bypass_state + tile))
                tl.store(bypass_state + tile, bypass)
                da = store_gradients(d, row, width, H, n, (da_r,), gradient_clip, active, units)
                hand_on(das, 0, PADDED_H, tile, da, BLOCK_B)
            tl.debug_barrier()
        if x is not None:
            for n in range(0, PADDED_I, BLOCK_N):
                inputs = rows & columns_before(I, n, BLOCK_N)
                sums = (zeros,)
                for g in tl.static_range(GATES):
                    da_g = plane(das, g, PADDED_H, BLOCK_B)
                    first = g * PADDED_H
                    w = weight_hh if HIDDEN else weight_ih
                    sums = add_products(sums, da_g, w, first, n, PADDED_H, PADDED_I, False, BLOCK_K, PRECISION)
                here_m = widen(load_modulation(saved, x, I, columns, SAVED * H, n, step, clock, inputs))
                dm = (sums[0] * here_m[1],)
                dm = store_gradients(d, row, width, H, GRADIENTS * H + n, dm, gradient_clip, active, inputs)
                hand_on(dms, 0, PADDED_I, offsets(PADDED_I, n, BLOCK_B, BLOCK_N), dm, BLOCK_B)
                dx = sums[0] * here_m[0]
                if HIDDEN:
                    dx = clip(dx, gradient_clip)
                store(d_input, row, I, n, choose(active, dx, 0.0), inputs)
            tl.debug_barrier()
        for n in range(0, PADDED_H, BLOCK_N):
            tile = offsets(PADDED_H, n, BLOCK_B, BLOCK_N)
            sums = (zeros,)
            if PASSES:
                sums = (tl.load(bypass_state + tile),)
            if not HIDDEN:
                for g in tl.static_range(GATES if RESET is None else 2):
                    beside = plane(das, g if g < GATES - 1 else GRADIENTS - 1, PADDED_H, BLOCK_B)
                    first = g * PADDED_H
                    sums = add_products(
                        sums, beside, weight_hh, first, n, PADDED_H, PADDED_H, False, BLOCK_K, PRECISION
                    )
            if x is not None:
                sums = add_products(sums, dms, weight_mhh, 0, n, PADDED_I, PADDED_H, False, BLOCK_K, PRECISION)
            dh = sums[0]
            if length is not None:
                dh = choose(active, dh, tl.load(dh_state + tile))
            if resets is not None:
                units = rows & columns_before(H, n, BLOCK_N)
                dh = end_episodes(begins, d_h_reset, first_row, H, n, units, dh)
                if c_0 is not None:
                    dc = tl.load(dc_state + tile)
                    tl.store(dc_state + tile, end_episodes(begins, d_c_reset, first_row, H, n, units, dc))
            tl.store(dh_state + tile, dh)
        tl.debug_barrier()
    for n in range(0, PADDED_H, BLOCK_N):
        tile = offsets(PADDED_H, n, BLOCK_B, BLOCK_N)
        units = rows & columns_before(H, n, BLOCK_N)
        store(d_h_0, first_row, H, n, tl.load(dh_state + tile), units)
        if c_0 is not None:
            store(d_c_0, first_row, H, n, tl.load(dc_state + tile), units)
