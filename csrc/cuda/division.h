// How the grid divides the work of a call: what the planner chooses, what FUSED_RNN_CUDA_PLAN forces in its place, and
// both as text.
#pragma once

#include <charconv>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>

namespace fused_rnn::cuda {

// How the blocks of a team hand each other what they make: see exchange/exchange.h. `cluster` and `messages` are those
// of the kernels of warps (cluster/), the others of the kernels of blocks; `warps` and `blocks` leave the choice among
// the ones and the others open.
enum class ExchangeId { chosen, one_block, l2, cluster, blocks, messages, warps };

constexpr std::string_view exchange_names[] = {"", "one_block", "l2", "cluster", "blocks", "messages", "warps"};

// Whether an exchange is of the kernels of warps.
constexpr bool of_warps(ExchangeId id) {
  return id == ExchangeId::cluster || id == ExchangeId::messages || id == ExchangeId::warps;
}

// A team of blocks takes a tile of sequences at a time and shares the units among its parts; the states that its blocks
// exchange come to shared memory in segments. In a division that is forced zero leaves a number to the planner, and the
// others are an upper bound where units or states cannot be divided evenly into as many: parts and segments that would
// be left with nothing are left out.
struct Division {
  int sequences = 0, parts = 0, segments = 0;
  ExchangeId exchange = ExchangeId::chosen;

  bool operator==(const Division& other) const {
    return sequences == other.sequences && parts == other.parts && segments == other.segments &&
           exchange == other.exchange;
  }
};

// As division_named takes it, without what is left to the planner.
inline std::string text(const Division& division) {
  std::string result;
  const auto add = [&](const char* name, const std::string& value) {
    result += (result.empty() ? "" : ",") + std::string(name) + "=" + value;
  };
  if (division.exchange != ExchangeId::chosen)
    add("exchange", std::string(exchange_names[static_cast<int>(division.exchange)]));
  if (division.sequences > 0) add("sequences", std::to_string(division.sequences));
  if (division.parts > 0) add("parts", std::to_string(division.parts));
  if (division.segments > 0) add("segments", std::to_string(division.segments));
  return result;
}

// Read a number from 1 to 9999 that fills the whole text; false if it is something else.
inline bool read_number(std::string_view text, int& number) {
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  return stop == end && error == std::errc() && number >= 1 && number <= 9999;
}

// Read NAME=VALUE into its place in the division, where nothing stood before; false if it is something else.
inline bool read_item(std::string_view item, Division& division) {
  const size_t equals = item.find('=');
  if (equals == item.npos) return false;
  const std::string_view name = item.substr(0, equals), value = item.substr(equals + 1);
  if (name == "exchange") {
    if (division.exchange != ExchangeId::chosen) return false;
    for (const ExchangeId id : {ExchangeId::one_block, ExchangeId::l2, ExchangeId::cluster, ExchangeId::blocks,
                                ExchangeId::messages, ExchangeId::warps})
      if (value == exchange_names[static_cast<int>(id)]) division.exchange = id;
    return division.exchange != ExchangeId::chosen;
  }
  int* const number = name == "sequences"  ? &division.sequences
                      : name == "parts"    ? &division.parts
                      : name == "segments" ? &division.segments
                                           : nullptr;
  return number && *number == 0 && read_number(value, *number);
}

// The division that a text such as "sequences=16,parts=8" forces; an empty text forces nothing. Each item may stand
// there once.
inline Division division_named(std::string_view whole) {
  Division division;
  bool right = true;
  for (std::string_view rest = whole; right && !rest.empty();) {
    const std::string_view item = rest.substr(0, rest.find(','));
    rest.remove_prefix(item.size());
    right = rest != "," && read_item(item, division);
    if (!rest.empty()) rest.remove_prefix(1);
  }
  if (division.exchange == ExchangeId::one_block) right = right && division.parts <= 1;
  if (division.exchange == ExchangeId::one_block || of_warps(division.exchange))
    right = right && division.segments <= 1;
  if (right && division.sequences % 8 == 0) return division;
  throw std::runtime_error(
      "fused_rnn: FUSED_RNN_CUDA_PLAN must be like exchange=l2,sequences=16,parts=8,segments=1, of which any may be "
      "left out, with the exchange l2, cluster, messages or warps (cluster or messages; these three with one segment), "
      "one_block (one part and one segment) or blocks (l2 or one_block), numbers from 1 to 9999 and sequences a "
      "multiple of 8, and is '" +
      std::string(whole) + "'");
}

// What the environment forces now. It is read at every call, so that a process can try one plan after the other.
inline Division forced_division() {
  const char* const text = std::getenv("FUSED_RNN_CUDA_PLAN");
  return division_named(text ? text : "");
}

}  // namespace fused_rnn::cuda
