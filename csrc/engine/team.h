// The engine's threads: kept between calls, and quick to meet.
//
// An evaluation at batch 1 has a hundred instructions of a few microseconds each, after each of
// which its threads meet; OpenMP's regions and barriers cost more than such an instruction, and
// stall for milliseconds where another program holds a core.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>

namespace agf {

// How threads share images: in teams, alone on images of their own where these go round evenly or
// are many, which needs no meeting, else together on the same image.
struct Teams {
  std::int64_t count, members;  // teams, and threads of each
  Teams(std::int64_t images, std::int64_t threads);
};

// Runs body(thread) for every thread in [0, threads), the caller's being 0, and returns when all
// are done. One call runs at a time. Also right after a fork.
void run_threads(int threads, const std::function<void(int)>& body);

// Where the threads of one team wait for each other.
class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}
  void wait();

 private:
  const int threads_;
  std::atomic<int> arrived_{0};
  std::atomic<unsigned> round_{0};
};

}  // namespace agf
