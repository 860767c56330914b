// How the blocks of a team hand each other what they make. A kernel is cell x exchange x division: it names the states
// that travel and says when it has put them and when it needs them, and never how they get there or which of two copies
// is which. Who wants to try another exchange writes one file like l2.h, with both halves:
//
// On the host, static:
//   void reserve_shared(Layout&, const Number&, Arena&)      what it needs of a block's shared memory
//   void reserve_workspace(Layout&, const Number&, Arena&)   and of device memory, which is cleared before the launch
//   double of_phase(int parts), double of_byte               what it costs in nanoseconds, for the planner
//   Attributes attributes(const Division&)                   how blocks must be launched
//   Operands<S> operands(layout, workspace, timed_out)       what its device half finds in the kernel's parameter
//
// On the device, a class Device<S> of which each thread has one. A *channel* is the name of a state: K values of each
// sequence of the tile, made by all blocks and read by all.
//   clear()                         once, before anything is put: places that nobody fills read as zero
//   put(channel, r, k, value)       one value for sequence r of the tile
//   close()                         this block has put all of the phase; by all threads. What needs nobody may follow
//   bool wait(channels...)          all blocks have; by all threads. From here on products read what was put, and what
//                                   is put next goes elsewhere. False if a block did not come in time: nothing may be
//                                   read then, and no other phase begun
//   begin(channel)                  start to bring its first segment to shared memory, by asynchronous copies
//   const S* take(channel, segment) the segment in shared memory, when those copies have come; the next is under way
#pragma once

#include <algorithm>

#include "../arena.h"
#include "../fragment.h"

namespace fused_rnn::cuda {

struct Attributes {
  bool cooperative = false;  // all blocks run at the same time, or the launch fails
};

template <typename T>
FUSED_RNN_DEVICE T* at(unsigned char* shared, int offset) {
  return reinterpret_cast<T*>(shared + offset);
}

}  // namespace fused_rnn::cuda
