"""The forward kernels: a whole sequence in one launch, one program per batch tile, the time loop inside.

The library projects x before the loop: W x in plain cells, W_m x if x is modulated, both if h₋ is. Two kernels do the
same: ``forward_resident`` loads all weights of a step once, keeps them on the chip and the state in registers;
``forward_streamed`` reads the weights block by block in every step and keeps the state in memory, which in practice is
L1 or L2.

Phases of a step: multiplicative cells make m and x̂, which U multiplies where h₋ is modulated; then the gates, and with
them h; the reset-before GRU makes only its gates and s = r⊙h₋ there, and h in a phase of its own. ``forward_streamed``
ends each with a barrier, because the next one reads what all threads of the program wrote. A barrier orders the memory
accesses of a program's threads, and programs share nothing and never wait for each other. h is exchanged in two buffers
that take turns, so that one barrier per phase is enough.

Operands, contiguous and of one type; those marked * are None for cells without them: projected (T, B, G*H) W x, where x
is modulated (T, B, I) W_m x; x * (T, B, I), where h₋ is modulated W_m x, with I = H; h_0, c_0 * (B, H); weight_ih
(G*H, I) where x is modulated, elsewhere None; weight_hh (G*H, H), weight_mhh * (I, H); biases, or None; lengths (B)
int64, or None; keep_h, keep_c (T, B, H) what zoneout keeps of the states, or None; resets (T, B) bytes, the steps that
begin anew, and h_reset, c_reset (B, H) with what, or None. Results: output (T, B, H); h_n,
c_n * (B, H); cells (T, B, H), the cell states of all steps, or None; saved (T, B, SAVED*H (+ I)), or None.
"""

import triton
import triton.language as tl

from .tiles import (
    active_at,
    add_bias,
    add_products,
    anew,
    begins_at,
    choose,
    columns_before,
    load,
    load_bias,
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
def load_step(projected, x, weight_ih, resets, step, clock, units, inputs, I, H, GATES: tl.constexpr):
    """What a step reads: W x of all gates, or W_m x where x is modulated; multiplicative: x; and which begin anew."""
    row = row_of(step, clock)
    if weight_ih is None:
        tiles = load_tiles(projected, row, GATES * H, 0, H, GATES, units)
    else:
        tiles = (load(projected, row, I, 0, inputs),)
    if x is not None:
        tiles = tiles + (load(x, row, I, 0, inputs),)
    if resets is not None:
        tiles = tiles + (begins_at(resets, step, clock, units.shape[0]),)
    return tiles


@triton.jit
def zone_out(keep, row, H, n, mask, before, after):
    """What zoneout makes of a state that the cell changed."""
    if keep is None:
        return after
    else:
        part = load(keep, row, H, n, mask).to(tl.float32)
        return part * before + (1.0 - part) * after


@triton.jit
def save(saved, row, columns, column, value, active, mask):
    """Keep a value of a step, where it is wanted; zero past the end of a sequence."""
    if saved is not None:
        store(saved, row, columns, column, choose(active, value, 0.0), mask)


@triton.jit
def save_values(saved, row, columns, start, values, active, units, H):
    """Keep the first values of a cell."""
    for k in tl.static_range(len(values)):
        save(saved, row, columns, k * H + start, values[k], active, units)


@triton.jit(do_not_specialize=["T", "B", "reverse"])
def forward_resident(
    projected, x, h_0, c_0, weight_ih, weight_hh, weight_mhh, bias_ih, bias_hh, bias_m, lengths,
    keep_h, keep_c, resets, h_reset, c_reset, output, h_n, c_n, cells, saved, T, B, reverse, I: tl.constexpr,
    H: tl.constexpr, GATES: tl.constexpr, SAVED: tl.constexpr, FORWARD: tl.constexpr, CANDIDATE: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    S: tl.constexpr = h_0.dtype.element_ty
    COLUMNS: tl.constexpr = SAVED * H + (0 if x is None else I)
    TOGETHER: tl.constexpr = GATES if CANDIDATE is None else 2  # gates that are multiplied with h₋ itself
    first_row = tl.program_id(0).to(tl.int64) * BLOCK_B
    clock = (T, B, reverse, first_row)
    rows = (first_row + tl.arange(0, BLOCK_B) < B)[:, None]
    units = rows & columns_before(H, 0, BLOCK_H)
    inputs = rows & columns_before(I, 0, BLOCK_I)
    length = load_lengths(lengths, first_row, rows)

    u = ()
    w = ()
    for g in tl.static_range(GATES):
        u = u + (load_weight(weight_hh, g * H, H, H, True, BLOCK_H, BLOCK_H),)
        if weight_ih is not None:
            w = w + (load_weight(weight_ih, g * H, I, H, True, BLOCK_I, BLOCK_H),)
    if x is not None:
        u_m = load_weight(weight_mhh, 0, H, I, True, BLOCK_H, BLOCK_I)

    h = load(h_0, first_row, H, 0, units).to(tl.float32)
    c = h  # a stand-in in cells without a cell state
    if c_0 is not None:
        c = load(c_0, first_row, H, 0, units).to(tl.float32)
    ahead = load_step(projected, x, weight_ih, resets, 0, clock, units, inputs, I, H, GATES)
    for step in range(T):
        row = row_of(step, clock)
        active = active_at(step, clock, length)
        here = widen(ahead)  # loaded a step ahead, so that nobody waits for memory
        next = tl.minimum(step + 1, T - 1)
        ahead = load_step(projected, x, weight_ih, resets, next, clock, units, inputs, I, H, GATES)
        if resets is not None:
            begins = here[len(here) - 1] != 0
            h = anew(begins, h_reset, first_row, H, 0, units, h)
            if c_0 is not None:
                c = anew(begins, c_reset, first_row, H, 0, units, c)
        operand = h.to(S)
        wx = here
        if weight_ih is None:
            wx = here[0:GATES]
        if x is not None:
            if weight_ih is None:
                m = tl.dot(operand, u_m, input_precision=PRECISION)
            else:
                m = add_bias((tl.dot(operand, u_m, here[0], input_precision=PRECISION),), bias_m, 0, I)[0]
            save(saved, row, COLUMNS, SAVED * H, m, active, inputs)
            x_hat = (m * here[GATES if weight_ih is None else 1]).to(S)
            if weight_ih is None:
                operand = x_hat
            else:
                wx = ()
                for g in tl.static_range(GATES):
                    wx = wx + (tl.dot(x_hat, w[g], input_precision=PRECISION),)
        wx = add_bias(wx, bias_ih, 0, H)
        uh = ()
        for g in tl.static_range(TOGETHER):
            uh = uh + (tl.dot(operand, u[g], input_precision=PRECISION),)
        uh = add_bias(uh, bias_hh, 0, H)
        if CANDIDATE is None:
            h_new, c_new, values = FORWARD(wx, uh, h, c, S)
            c_new = zone_out(keep_c, row, H, 0, units, c, c_new)
            c = choose(active, c_new, c)
            save(cells, row, H, 0, c_new, active, units)
        else:
            s, r, z = FORWARD(wx, uh, h, S)
            h_new, n = CANDIDATE(wx[2], tl.dot(s.to(S), u[2], input_precision=PRECISION), z, h, S)
            values = (r, z, n)
        h_new = zone_out(keep_h, row, H, 0, units, h, h_new)
        h = choose(active, h_new, h)
        store(output, row, H, 0, choose(active, h, 0.0), units)
        save_values(saved, row, COLUMNS, 0, values, active, units, H)
    store(h_n, first_row, H, 0, h, units)
    if c_0 is not None:
        store(c_n, first_row, H, 0, c, units)


# PADDED_I and PADDED_H are I and H rounded up to whole blocks. Weights are padded with zeros to (G*PADDED_H, PADDED_I),
# (G*PADDED_H, PADDED_H) and (PADDED_I, PADDED_H). Each program has memory of its own: in ``states``, 3 * BLOCK_B *
# PADDED_H of float32; in ``operands``, BLOCK_B * (3 * PADDED_H + PADDED_I) of the type of the weights.
@triton.jit(do_not_specialize=["T", "B", "reverse"])
def forward_streamed(
    projected, x, h_0, c_0, weight_ih, weight_hh, weight_mhh, bias_ih, bias_hh, bias_m, lengths,
    keep_h, keep_c, resets, h_reset, c_reset, output, h_n, c_n, cells, saved, T, B, reverse, I, H, PADDED_I, PADDED_H,
    states, operands, GATES: tl.constexpr, SAVED: tl.constexpr, FORWARD: tl.constexpr, CANDIDATE: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    S: tl.constexpr = h_0.dtype.element_ty
    TOGETHER: tl.constexpr = GATES if CANDIDATE is None else 2
    HIDDEN: tl.constexpr = False if x is None else weight_ih is None  # whether h₋ is modulated
    columns = SAVED * H + (0 if x is None else I)
    program = tl.program_id(0).to(tl.int64)
    first_row = program * BLOCK_B
    clock = (T, B, reverse, first_row)
    rows = (first_row + tl.arange(0, BLOCK_B) < B)[:, None]
    length = load_lengths(lengths, first_row, rows)
    # what a tile of units leaves for its own next visit
    h_state = plane(states, program * 3, PADDED_H, BLOCK_B)
    c_state = plane(h_state, 1, PADDED_H, BLOCK_B)
    z_state = plane(h_state, 2, PADDED_H, BLOCK_B)
    # left operands of products, which read all units: h before and after a step in turn, s, and x̂
    hs = operands + program * (BLOCK_B * (3 * PADDED_H + PADDED_I))
    ss = plane(hs, 2, PADDED_H, BLOCK_B)
    x_hats = plane(hs, 3, PADDED_H, BLOCK_B)
    zeros = tl.zeros((BLOCK_B, BLOCK_N), tl.float32)

    for n in range(0, PADDED_H, BLOCK_N):
        tile = offsets(PADDED_H, n, BLOCK_B, BLOCK_N)
        units = rows & columns_before(H, n, BLOCK_N)
        begins = begins_at(resets, 0, clock, BLOCK_B)
        h = anew(begins, h_reset, first_row, H, n, units, load(h_0, first_row, H, n, units).to(tl.float32))
        tl.store(h_state + tile, h)
        tl.store(hs + tile, h.to(S))
        if c_0 is not None:
            c = load(c_0, first_row, H, n, units).to(tl.float32)
            tl.store(c_state + tile, anew(begins, c_reset, first_row, H, n, units, c))
    tl.debug_barrier()
    for step in range(T):
        row = row_of(step, clock)
        active = active_at(step, clock, length)
        h_before = plane(hs, step % 2, PADDED_H, BLOCK_B)
        h_after = plane(hs, 1 - step % 2, PADDED_H, BLOCK_B)
        begins = begins_at(resets, tl.minimum(step + 1, T - 1), clock, BLOCK_B)  # the next step
        if resets is not None:
            begins = begins & (tl.full((1, 1), step, tl.int32) < T - 1)
        if x is not None:
            for n in range(0, PADDED_I, BLOCK_N):
                inputs = rows & columns_before(I, n, BLOCK_N)
                sums = (zeros,)
                if weight_ih is not None:
                    sums = (load(projected, row, I, n, inputs).to(tl.float32),)
                sums = add_products(sums, h_before, weight_mhh, 0, n, PADDED_H, PADDED_I, True, BLOCK_K, PRECISION)
                m = add_bias(sums, bias_m, n, I)[0]
                save(saved, row, columns, SAVED * H + n, m, active, inputs)
                x_hat = m * load(x, row, I, n, inputs).to(tl.float32)
                tl.store(x_hats + offsets(PADDED_I, n, BLOCK_B, BLOCK_N), x_hat.to(S))
            tl.debug_barrier()
        for n in range(0, PADDED_H, BLOCK_N):
            tile = offsets(PADDED_H, n, BLOCK_B, BLOCK_N)
            units = rows & columns_before(H, n, BLOCK_N)
            uh = ()
            wx = ()
            for g in tl.static_range(TOGETHER):
                uh = uh + (zeros,)
                if weight_ih is None:
                    wx = wx + (load(projected, row, GATES * H, g * H + n, units).to(tl.float32),)
                else:
                    wx = wx + (zeros,)
            operand = h_before
            if HIDDEN:
                operand = x_hats
            uh = add_products(uh, operand, weight_hh, 0, n, PADDED_H, PADDED_H, True, BLOCK_K, PRECISION)
            uh = add_bias(uh, bias_hh, n, H)
            if weight_ih is not None:
                wx = add_products(wx, x_hats, weight_ih, 0, n, PADDED_I, PADDED_H, True, BLOCK_K, PRECISION)
            wx = add_bias(wx, bias_ih, n, H)
            h = tl.load(h_state + tile)
            if CANDIDATE is None:
                c = h
                if c_0 is not None:
                    c = tl.load(c_state + tile)
                h_new, c_new, values = FORWARD(wx, uh, h, c, S)
                c_new = zone_out(keep_c, row, H, n, units, c, c_new)
                if c_0 is not None:
                    c = anew(begins, c_reset, first_row, H, n, units, choose(active, c_new, c))
                    tl.store(c_state + tile, c)
                save(cells, row, H, n, c_new, active, units)
                h_new = zone_out(keep_h, row, H, n, units, h, h_new)
                h = choose(active, h_new, h)
                store(output, row, H, n, choose(active, h, 0.0), units)
                h = anew(begins, h_reset, first_row, H, n, units, h)
                tl.store(h_state + tile, h)
                tl.store(h_after + tile, h.to(S))
                save_values(saved, row, columns, n, values, active, units, H)
            else:
                s, r, z = FORWARD(wx, uh, h, S)
                tl.store(ss + tile, s.to(S))
                tl.store(z_state + tile, z)
                save_values(saved, row, columns, n, (r, z), active, units, H)
        tl.debug_barrier()
        if CANDIDATE is not None:
            for n in range(0, PADDED_H, BLOCK_N):
                tile = offsets(PADDED_H, n, BLOCK_B, BLOCK_N)
                units = rows & columns_before(H, n, BLOCK_N)
                first = 2 * PADDED_H
                us = add_products((zeros,), ss, weight_hh, first, n, PADDED_H, PADDED_H, True, BLOCK_K, PRECISION)
                if weight_ih is None:
                    wx = (load(projected, row, GATES * H, 2 * H + n, units).to(tl.float32),)
                else:
                    wx = add_products(
                        (zeros,), x_hats, weight_ih, first, n, PADDED_I, PADDED_H, True, BLOCK_K, PRECISION
                    )
                wx_n = wx[0]
                if bias_ih is not None:
                    wx_n += load_bias(bias_ih, 2 * H, H, n, BLOCK_N)
                h = tl.load(h_state + tile)
                h_new, candidate = CANDIDATE(wx_n, us[0], tl.load(z_state + tile), h, S)
                h_new = zone_out(keep_h, row, H, n, units, h, h_new)
                h = choose(active, h_new, h)
                store(output, row, H, n, choose(active, h, 0.0), units)
                h = anew(begins, h_reset, first_row, H, n, units, h)
                tl.store(h_state + tile, h)
                tl.store(h_after + tile, h.to(S))
                save(saved, row, columns, 2 * H + n, candidate, active, units)
            tl.debug_barrier()
    for n in range(0, PADDED_H, BLOCK_N):
        tile = offsets(PADDED_H, n, BLOCK_B, BLOCK_N)
        units = rows & columns_before(H, n, BLOCK_N)
        store(h_n, first_row, H, n, tl.load(h_state + tile), units)
        if c_0 is not None:
            store(c_n, first_row, H, n, tl.load(c_state + tile), units)
