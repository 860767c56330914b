// The division of a call's work among the blocks of the grid: the planner chooses it or FUSED_RNN_CUDA_PLAN forces it,
// and both can be read and written as text.
#pragma once

#include <charconv>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>

namespace fused_rnn::cuda {

// How the blocks of a team hand each other states: see exchange/exchange.h. There are two families of kernels. The warp
// kernels (cluster/) use `cluster` or `messages`, the block kernels `l2` or `one_block`; `warps` and `blocks` name a
// family and leave the choice of its exchange open.
enum class ExchangeId { chosen, one_block, l2, cluster, blocks, messages, warps };

constexpr std::string_view exchange_names[] = {"", "one_block", "l2", "cluster", "blocks", "messages", "warps"};

// Whether an exchange belongs to the warp kernels.
constexpr bool of_warps(ExchangeId id) {
  return id == ExchangeId::cluster || id == ExchangeId::messages || id == ExchangeId::warps;
}

// A team of blocks takes a tile of sequences at a time, and its parts share the units; the states that its blocks
// exchange come to shared memory in segments. In a forced division zero leaves a number to the planner. Forced parts
// and segments are upper bounds: where units or states do not divide evenly, those that would be empty are left out.
struct Division {
  int sequences = 0, parts = 0, segments = 0;
  ExchangeId exchange = ExchangeId::chosen;

  bool operator==(const Division& other) const {
    return sequences == other.sequences && parts == other.parts && segments == other.segments &&
           exchange == other.exchange;
  }
};

// The text that division_named reads, without items that are left to the planner.
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

// Read a text that is a number from 1 to 9999; false if it is anything else.
inline bool read_number(std::string_view text, int& number) {
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  return stop == end && error == std::errc() && number >= 1 && number <= 9999;
}

// Read NAME=VALUE into a member of the division that is not yet set; false if the item is anything else.
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

// The division that a text such as "sequences=16,parts=8" forces; an empty text forces nothing. Each item may occur
// once.
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

// The division that the environment forces. It is read at every call, so that a process can try one plan after the
// other.
inline Division forced_division() {
  const char* const text = std::getenv("FUSED_RNN_CUDA_PLAN");
  return division_named(text ? text : "");
}

}  // namespace fused_rnn::cuda
