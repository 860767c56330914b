// A program in which two threads launch one kernel with different shared memory: between what the first one does for
// its launch and the launch itself, the second one's comes. Says on stderr which launch is refused, and exits with 1.

#include <cstdio>

#include "../../csrc/cuda/launch.h"

using namespace fused_rnn::cuda;

void kernel(int) {}

int main() {
  int refused = 0;
  for (const int64_t first : {40'000, 60'000, 200'000})
    for (const int64_t second : {0, 50'000, 150'000}) {
      allowed.clear();
      const StreamLauncher launcher(Chip{.shared_bytes = 227 * 1024});
      const auto launch = [&](int64_t bytes) {
        const std::string error = launcher.launch(kernel, 1, bytes, Attributes{}, 0, nullptr);
        if (error.empty()) return;
        std::fprintf(stderr, "%s\n", error.c_str());
        refused = 1;
      };
      in_another_thread = [&] { launch(second); };
      launch(first);
    }
  return refused;
}
