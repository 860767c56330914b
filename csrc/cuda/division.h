// How the grid divides the work of a call: what the planner chooses, what FUSED_RNN_CUDA_PLAN forces in its place, and
// both as text.
#pragma once

#include <charconv>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>

namespace fused_rnn::cuda {

// A team of blocks takes a tile of sequences at a time and shares the units among its parts; the states that its blocks
// exchange come to shared memory in segments. In a division that is forced zero leaves a number to the planner, and the
// others are an upper bound where units or states cannot be divided evenly into as many: parts and segments that would
// be left with nothing are left out.
struct Division {
  int sequences = 0, parts = 0, segments = 0;

  bool operator==(const Division& other) const {
    return sequences == other.sequences && parts == other.parts && segments == other.segments;
  }
};

// As division_named takes it, without the numbers that are zero.
inline std::string text(const Division& division) {
  std::string result;
  const auto add = [&](const char* name, int number) {
    if (number > 0) result += (result.empty() ? "" : ",") + std::string(name) + "=" + std::to_string(number);
  };
  add("sequences", division.sequences);
  add("parts", division.parts);
  add("segments", division.segments);
  return result;
}

// The division that a text such as "sequences=16,parts=8" forces; an empty text forces nothing. Each of the three
// numbers may stand there once.
inline Division division_named(std::string_view whole) {
  Division division;
  const auto fail = [&] {
    throw std::runtime_error(
        "fused_rnn: FUSED_RNN_CUDA_PLAN must be like sequences=16,parts=8,segments=1, of which any may be left out, "
        "with "
        "numbers from 1 to 9999 and sequences a multiple of 8, and is '" +
        std::string(whole) + "'");
  };
  for (std::string_view rest = whole; !rest.empty();) {
    const std::string_view item = rest.substr(0, rest.find(','));
    rest.remove_prefix(item.size());
    if (rest == ",") fail();
    if (!rest.empty()) rest.remove_prefix(1);
    const size_t equals = item.find('=');
    const std::string_view name = item.substr(0, equals);
    int* const number = name == "sequences"  ? &division.sequences
                        : name == "parts"    ? &division.parts
                        : name == "segments" ? &division.segments
                                             : nullptr;
    if (!number || *number || equals == item.npos) fail();
    const char* const end = item.data() + item.size();
    const auto [stop, error] = std::from_chars(item.data() + equals + 1, end, *number);
    if (stop != end || error != std::errc() || *number < 1 || *number > 9999) fail();
  }
  if (division.sequences % 8) fail();
  return division;
}

// What the environment forces now. It is read at every call, so that a process can try one plan after the other.
inline Division forced_division() {
  const char* const text = std::getenv("FUSED_RNN_CUDA_PLAN");
  return division_named(text ? text : "");
}

}  // namespace fused_rnn::cuda
