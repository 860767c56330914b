// How the blocks of a team hand each other values. A kernel is cell x exchange x division: it names what travels, and
// says when it has written it and when it needs it, but never how it gets there or which of two copies is which. A new
// exchange is one new file, with a host and a device half.
//
// A *channel* is what the blocks hand each other once a step, in two copies that take turns where one is not enough.
// There are two kinds: a *state*, K values of each sequence of the tile, which all blocks write and all read; and
// *partial sums*, to which every block contributes for outputs that one block owns and adds up.
//
// Block kernels have any size, and exchange single values (l2.h, one_block.h, either.h). Warp kernels have compile-time
// sizes and values that stay in registers, and exchange rows of 8 units (cluster.h, messages.h).
//
// The host half is static:
//   attributes(...)                 how the blocks must be launched
//   of_phase(parts), of_byte        block kernels: the cost in nanoseconds, for the planner
//   reserve_shared, reserve_workspace(Layout&, const Number&, Arena&)
//                                   block kernels: takes a block's shared memory, and device memory that will be
//                                   zeroed; warp kernels have `shared_bytes` of each channel instead
//   operands<S>(layout, workspace, timed_out)
//                                   block kernels: what the device half finds in the kernel's parameter
//
// The device half for block kernels is a class Device<S>, of which each thread has an object; a channel is the name of
// a state in the layout.
//   clear()                         once, before the first put: values that are never put read as zero
//   put(channel, r, k, value)       one value for sequence r of the tile
//   close()                         by all threads: this block has put all values of the phase. Work that needs no
//                                   other block may follow
//   bool wait(channels...)          by all threads: all blocks have closed the phase. From here on products read what
//                                   was put, and the next puts go elsewhere. False after a timeout: then nothing may be
//                                   read, and no other phase begun
//   begin(channel)                  start asynchronous copies of its first segment to shared memory
//   const S* take(channel, segment) wait for the segment in shared memory, and start to copy the next one
//
// The device half for warp kernels has objects for the team and for each channel, of which each thread has its own; a
// warp calls these functions with all its lanes. An *octet* is the 8 sequences that a matrix instruction takes; a
// *share* is a share of K that some of the warps read and wait for on their own.
//   team.start(fill)                by all threads of the team, before each tile: the copies of channels are free, and
//                                   fill() puts what the first step reads
//   team.end()                      by all threads, before the block returns
//   Team::ordered                   whether receiving a push comes after all that the pushing block did before it
// A state:
//   expect(share)                   by one of the warps that read the share: another step will follow the present one,
//                                   and read what this one writes. After the step's wait, if it has one
//   own(k)                          once: the warp makes units k to k + 7
//   push(octet, row, term)          sends these for one octet; of floats, one term at a time. Lane l gives the row of
//   16
//                                   bytes of sequence 8 * octet + l % 8, so that four lanes give the same one. Not in
//                                   the last step, because nobody would wait for it
//   bool wait(share, failing)       by every warp, in every step but the first: a share of what was pushed has come
//                                   whole and is read from now on; later pushes are for the step after. Calls failing()
//                                   if it is this wait that fails
//   put(r, k, value)                by fill(): one value for sequence r of the tile
//   SharedAddress address()         [terms, sequences, K + 8] in shared memory, for load_matrices
// Partial sums have expect(), wait(), wait(failing) and
//   contribute(owner, place, sums)  sends four sums for a place of block `owner`: each block does so once a step for
//                                   each place
//   pair(part, pair)                two of the four, in one of the `parts` parts that the owner adds up, each from one
//                                   block or from several; pairs are counted through all places
//   follow()                        in place of wait(), for a warp that contributes and reads nothing: another warp of
//                                   its block has waited, and a barrier of the block lies between
//
// In warp kernels two copies are enough, and no exchange has to signal "I have read it", because kernels keep a rule:
// what a warp reads in a step, it has read before its block sends the last of what others wait for in that step. So a
// block that has received a whole step knows that the step before is no longer read by anyone, and may push what takes
// its place. A warp that sends nothing itself is ordered by a barrier of its block (split.h, __syncthreads) before one
// that does. The rule covers the copies of channels alone. What else the warps of a block share, such as the operand of
// a product whose sums go to several owners, the kernel orders itself.
//
// If a step has several phases, each has a channel. A phase may be made by some of the blocks alone, but every block
// has a part in the last one. The rule is then that a block has read what it reads in a step, in any phase, before it
// sends the last of its part in the last phase; and that it sends its part of a phase only after it has received the
// phase before as a whole, or the last phase of the step before. By a chain of such waits, a block that sends in any
// phase of step t has received everything that makes up the last phase of step t - 1. So every block has read what it
// reads in step t - 1, even from a channel that it reads later than what is made of it: U h₋ reads h₋ after x̂ has left.
// What is overwritten is of step t - 2, and was read by then. Sequences that have ended travel with the others, so that
// a turn always has all its bytes; start() lies between tiles.
//
// A wait times out after ten seconds. In a warp kernel, a warp with a failed wait is not alive: its waits return false
// at once, and push, contribute and expect do nothing. It runs on to the end of the kernel, through all barriers, and
// writes NaN for what it could not compute, also for its block. Where it would only arrive at a barrier it must wait
// there, because no exchange holds it back. The other warps time out in turn when what it owes them does not come, and
// the host learns of it.
#pragma once

#include <algorithm>

#include "../arena.h"
#include "../fragment.h"

namespace fused_rnn::cuda {

// How an exchange needs the kernel to be launched.
struct Attributes {
  bool cooperative = false;  // all blocks run at the same time, or the launch fails
  int cluster = 0;           // consecutive blocks that form a cluster; 0: no clusters
  int threads = cuda::threads;
};

template <typename T>
FUSED_RNN_DEVICE T* at(unsigned char* shared, int offset) {
  return reinterpret_cast<T*>(shared + offset);
}

}  // namespace fused_rnn::cuda
