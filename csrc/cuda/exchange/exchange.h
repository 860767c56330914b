// How the blocks of a team hand each other what they make. A kernel is cell x exchange x division: it names what
// travels and says when it has made it and when it needs it, and never how it gets there or which of two copies is
// which. Who wants to try another exchange writes one file, with both halves.
//
// A *channel* is what the blocks hand each other once a step, in two copies that take turns where one would not do.
// There are two kinds: a *state*, K values of each sequence of the tile, made by all blocks and read by all; and
// *partial sums*, of which every block contributes a part for outputs that one block owns and adds up.
//
// On the host, static:
//   attributes(...)                 how blocks must be launched
//   of_phase(parts), of_byte        by values, what it costs in nanoseconds, for the planner
//   reserve_shared, reserve_workspace(Layout&, const Number&, Arena&)
//                                   what it needs of a block's shared memory, and of device memory that is cleared; by
//                                   rows, `shared_bytes` of each channel
//   operands<S>(layout, workspace, timed_out)
//                                   by values, what its device half finds in the kernel's parameter
//
// On the device, by values: for kernels of blocks, of any size (l2.h, one_block.h, either.h). A class Device<S> of
// which each thread has one; a channel is the name of a state in the layout.
//   clear()                         once, before anything is put: places that nobody fills read as zero
//   put(channel, r, k, value)       one value for sequence r of the tile
//   close()                         this block has put all of the phase; by all threads. What needs nobody may follow
//   bool wait(channels...)          all blocks have; by all threads. From here on products read what was put, and what
//                                   is put next goes elsewhere. False if a block timed out: nothing may be read then,
//                                   and no other phase begun
//   begin(channel)                  start to bring its first segment to shared memory, by asynchronous copies
//   const S* take(channel, segment) the segment in shared memory, when those copies have come; the next is under way
//
// On the device, by rows: for kernels of warps whose sizes are constants of the compiler and whose values stay in
// registers (cluster.h, messages.h). The team and each channel are objects that every thread has; a warp calls these
// with all its lanes. An *octet* is 8 sequences, what a matrix instruction takes; a *share* is a share of K that some
// warps read and wait for by themselves.
//   team.start(fill)                by all threads of the team, before each tile: all have ended the last one, and
//                                   fill() puts what the first step reads
//   team.end()                      by all threads, before the block returns
//   Team::ordered                   whether who has got what a block pushed comes after all that this did before
// A state:
//   expect(share)                   one warp of those that read the share: another step will follow the present one,
//                                   and read what this one makes. After the step's wait, if it has one
//   own(k)                          once: the warp makes units k to k + 7
//   push(octet, row, term)          these, 16 bytes: lane l gives those of sequence 8 * octet + l % 8, so that four
//                                   lanes give the same row; of a float each of its terms. Not in the last step:
//                                   nobody would wait for it
//   bool wait(share, failing)       a share of what was made has come whole and is now what is read; what is pushed
//                                   from now on is for the step after. By every warp, in every step but the first.
//                                   Calls failing() if it is this wait that fails
//   put(r, k, value)                by fill(): one value for sequence r of the tile
//   SharedAddress address()         [terms, sequences, K + 8] in shared memory, for load_matrices
// Partial sums have expect(), wait(), wait(failing) and
//   contribute(owner, place, sums)  four sums for a place of block `owner`: each place once a step from each block
//   pair(part, pair)                two of the four, in one of `parts` parts that are to be added up: what
//                                   a block gave, or several; pairs are counted through all places
//   follow()                        in place of wait(), for a warp that contributes and reads nothing: another warp of
//                                   its block has waited, and a barrier of the block lies between
//
// By rows two copies are enough, and no exchange has to say "I have read it", because of a rule that kernels keep:
// whatever a warp reads in a step it has read before its block makes the last of what others wait for in that step. So
// who gets a whole step knows that nobody reads the step before any more, and may push what takes its place. A warp
// that makes nothing itself is ordered by a barrier of its block (split.h, __syncthreads) before one that does. The
// rule is about the copies of channels alone: what else warps of a block share, as the operand of a product whose sums
// go to several owners, the kernel orders itself.
//
// Where a step has several phases, each has a channel, of which some blocks alone may make a part, and the last phase
// is one that every block has a part in. Then the rule is that a block has read what it reads in a step, in whatever
// phase, before it makes the last of its part in the last phase; and that who makes a part of a phase has got the phase
// before whole, or the last one of the step before. So who makes a part of any phase in step t has got, by a chain of
// such waits, all that the last phase of step t - 1 is made of: every block has read what it reads in step t - 1, also
// of a channel that it reads later than what is made of it, as U h₋ reads h₋ after x̂ has left. What is overwritten is
// of step t - 2 and was read by then. Sequences that have ended travel with the others, so that a turn always has all
// its bytes; tiles that end are followed by start().
//
// A wait takes ten seconds at most. By rows, a warp of which one has failed is not alive: its waits return false at
// once, push, contribute and expect do nothing, and it runs on to the end of the kernel, with all its barriers, and
// writes NaN for what it could not compute, to the block too; where it only arrives at a barrier it must wait there,
// because no exchange holds it back. The others follow when what it owes them does not come, and the host learns of it.
#pragma once

#include <algorithm>

#include "../arena.h"
#include "../fragment.h"

namespace fused_rnn::cuda {

// What an exchange asks of the launch.
struct Attributes {
  bool cooperative = false;  // all blocks run at the same time, or the launch fails
  int cluster = 0;           // so many blocks that follow each other are a cluster, if any
  int threads = cuda::threads;
};

template <typename T>
FUSED_RNN_DEVICE T* at(unsigned char* shared, int offset) {
  return reinterpret_cast<T*>(shared + offset);
}

}  // namespace fused_rnn::cuda
