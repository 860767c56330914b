// Which of its code a library runs on a GPU: a pure function of what it was compiled for. Runs on the host.
#pragma once

#include <algorithm>
#include <string_view>

namespace fused_rnn::cuda {

// Return the architecture that the code for a GPU was compiled for, 90 for sm_90, sm_90a and compute_90; 0 if there is
// no code for it. `built` names all code as nvcc does, such as "sm_80+sm_90a+compute_100"; `capability` is the GPU's,
// 90 for 9.0.
//
// Machine code (sm) runs on GPUs of the same major version and the same or a later minor one, and PTX (compute), which
// the driver compiles, on all later GPUs; code for 90a on 9.0 alone, and code for 100f on 10.0 and later minor
// versions. Machine code goes first.
inline int compiled_for(std::string_view built, int capability) {
  int machine_code = 0, ptx = 0;
  while (!built.empty()) {
    const std::string_view code = built.substr(0, built.find('+'));
    built.remove_prefix(std::min(built.size(), code.size() + 1));
    const bool portable = code.substr(0, 8) == "compute_";
    const char last = code.back();
    int architecture = 0;
    for (const char c : code)
      if ('0' <= c && c <= '9') architecture = 10 * architecture + (c - '0');
    const bool any_major = portable && last != 'f', same_major = architecture / 10 == capability / 10;
    const bool runs =
        last == 'a' ? architecture == capability : architecture <= capability && (any_major || same_major);
    int& found = portable ? ptx : machine_code;
    if (runs) found = std::max(found, architecture);
  }
  return machine_code ? machine_code : ptx;
}

}  // namespace fused_rnn::cuda
