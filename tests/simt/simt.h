// A CUDA block on the CPU, for tests: includes the kernel headers' view of CUDA, compiled by a C++
// compiler, and runs a launch with one fibre per thread, the blocks one after another.
//
// What a wrong kernel meets here: barriers and shuffles that not all threads reach, or reach at
// different places, are errors; shuffles hand over values only between lanes that their mask names;
// shared memory is exactly as large as declared and poisoned before each block; and the order of
// warps, and of threads in a warp, is shuffled by a seed, so that a race shows.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "fibre.h"

// ------------------------------------------------------------------- what nvcc has built in
struct SimtIndex {
  unsigned x, y;
};
inline SimtIndex gridDim, blockIdx, threadIdx;

inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}

namespace simt {

constexpr int kWarp = 32;

struct Thread {
  enum class State { running, barrier, shuffle, done };
  State state;
  const void* site;     // of the barrier or shuffle that it waits at
  unsigned mask;        // of the shuffle
  std::uint64_t value;  // that it offers to the other lanes
  std::uint64_t given;  // the value that it offered in the last shuffle that took place
  Fibre fibre;
};

// Shared memory: one array per declaration.
struct SharedArray {
  const void* site;
  std::unique_ptr<unsigned char[]> data;
};

class Launch {
 public:
  static Launch*& current() {
    static Launch* launch = nullptr;
    return launch;
  }

  std::int64_t only = -1;  // the one block to run, of a grid that would take too long, or all

  // Runs `body` for every thread of every block; returns what went wrong, or "".
  std::string run(SimtIndex grid, int threads, std::uint64_t seed,
                  const std::function<void()>& body) {
    current() = this;
    error_.clear();
    std::mt19937_64 random(seed);
    gridDim = grid;
    if (threads_.size() < static_cast<std::size_t>(threads)) threads_.resize(threads);
    count_ = threads;
    const std::uint64_t blocks = std::uint64_t{grid.x} * grid.y;
    for (std::uint64_t block = 0; block < blocks && error_.empty(); ++block) {
      if (only >= 0 && block != static_cast<std::uint64_t>(only)) continue;
      blockIdx = {static_cast<unsigned>(block % grid.x), static_cast<unsigned>(block / grid.x)};
      run_block(random, body);
    }
    current() = nullptr;
    return error_;
  }

  void wait(Thread::State state, const void* site, unsigned mask = 0, std::uint64_t value = 0) {
    Thread& thread = *running_;
    const SimtIndex index = threadIdx;
    thread.state = state, thread.site = site, thread.mask = mask, thread.value = value;
    thread.fibre.leave();
    threadIdx = index;
  }
  const Thread& lane(unsigned lane) const { return threads_[threadIdx.x / kWarp * kWarp + lane]; }

  // The block's array for this declaration.
  void* shared(const void* site, std::size_t bytes) {
    for (const SharedArray& array : shared_) {
      if (array.site == site) return array.data.get();
    }
    // An allocation of its own, so that AddressSanitizer sees its end.
    shared_.push_back({site, std::unique_ptr<unsigned char[]>(new unsigned char[bytes])});
    std::memset(shared_.back().data.get(), 0xff, bytes);  // NaN in every floating-point type
    return shared_.back().data.get();
  }

  void fail(const std::string& what) {
    if (!error_.empty()) return;
    error_ =
        what + " in block (" + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ")";
  }

 private:
  void run_block(std::mt19937_64& random, const std::function<void()>& body) {
    shared_.clear();
    std::vector<int> warps(count_ / kWarp), lanes(kWarp);
    std::iota(warps.begin(), warps.end(), 0);
    std::iota(lanes.begin(), lanes.end(), 0);
    for (int i = 0; i < count_; ++i) {
      threads_[i].state = Thread::State::running;
      threads_[i].fibre.start([this, i, &body] {
        body();
        threads_[i].state = Thread::State::done;
      });
    }
    for (;;) {
      // Each warp goes as far as it can before the next one starts: to a barrier, or its end.
      std::shuffle(warps.begin(), warps.end(), random);
      for (int warp : warps) {
        do {
          std::shuffle(lanes.begin(), lanes.end(), random);
          for (int lane : lanes) {
            const int i = warp * kWarp + lane;
            if (threads_[i].state != Thread::State::running) continue;
            running_ = &threads_[i];
            threadIdx = {static_cast<unsigned>(i), 0};
            threads_[i].fibre.enter();
          }
        } while (error_.empty() && release_shuffles(warp * kWarp));
        if (!error_.empty()) return;
      }
      int waiting = 0;
      for (int i = 0; i < count_; ++i) waiting += threads_[i].state == Thread::State::barrier;
      if (waiting == 0) return;
      for (int i = 0; i < count_; ++i) {
        if (threads_[i].state != Thread::State::barrier) {
          return fail("thread " + std::to_string(i) + " did not reach the barrier of the others");
        }
        if (threads_[i].site != threads_[0].site) {
          return fail("threads 0 and " + std::to_string(i) + " are at different barriers");
        }
      }
      for (int i = 0; i < count_; ++i) threads_[i].state = Thread::State::running;
    }
  }

  bool release_shuffles(int warp) {
    bool released = false;
    for (int i = 0; i < kWarp; ++i) {
      Thread& thread = threads_[warp + i];
      if (thread.state != Thread::State::shuffle) continue;
      const std::string name = "thread " + std::to_string(warp + i);
      if (!(thread.mask >> i & 1)) {
        fail(name + " shuffles under a mask without itself");
        return false;
      }
      for (int j = 0; j < kWarp; ++j) {
        const Thread& other = threads_[warp + j];
        if (!(thread.mask >> j & 1)) continue;
        if (other.state != Thread::State::shuffle || other.mask != thread.mask ||
            other.site != thread.site) {
          fail("lane " + std::to_string(j) + " did not join in the shuffle of " + name);
          return false;
        }
      }
      released = true;
    }
    if (released) {
      for (int i = 0; i < kWarp; ++i) {
        Thread& thread = threads_[warp + i];
        if (thread.state != Thread::State::shuffle) continue;
        thread.given = thread.value;
        thread.state = Thread::State::running;
      }
    }
    return released;
  }

  std::vector<Thread> threads_;
  int count_ = 0;
  Thread* running_ = nullptr;
  std::vector<SharedArray> shared_;
  std::string error_;
};

template <class A>
A shuffle(const void* site, unsigned mask, A value, unsigned source) {
  static_assert(sizeof(A) <= sizeof(std::uint64_t));
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(A));
  Launch& launch = *Launch::current();
  launch.wait(Thread::State::shuffle, site, mask, bits);
  if (source >= kWarp || !(mask >> source & 1)) {
    launch.fail("a shuffle reads lane " + std::to_string(source) + ", which its mask leaves out");
    return value;
  }
  std::memcpy(&value, &launch.lane(source).given, sizeof(A));
  return value;
}

}  // namespace simt

// The place in the code tells one barrier or shuffle from another.
__attribute__((noinline)) inline void __syncthreads() {
  simt::Launch::current()->wait(simt::Thread::State::barrier, __builtin_return_address(0));
}
template <class A>
__attribute__((noinline)) A __shfl_xor_sync(unsigned mask, A value, int lane_mask) {
  return simt::shuffle(__builtin_return_address(0), mask, value,
                       (threadIdx.x % simt::kWarp) ^ lane_mask);
}

#define AGF_SHARED(type, name, count)                \
  static char name##_site;                           \
  type(&name)[count] = *static_cast<type(*)[count]>( \
      simt::Launch::current()->shared(&name##_site, sizeof(type) * (count)))
