// Threads that look for work for about a millisecond before they sleep.
#include "engine/team.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <numeric>
#include <thread>
#include <vector>

namespace agf {
namespace {

constexpr int kSpins = 1000;  // of about 50 ns: longer than most instructions of a plan
constexpr int kOffers =
    2000;  // of the core to others, then: longer than Python takes between calls

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");
#endif
}

// Returns once ready() holds. Spins first, then gives the core to whoever else wants it.
template <class Ready>
void spin_until(const Ready& ready) {
  for (int i = 0; i < kSpins; ++i) {
    if (ready()) return;
    relax();
  }
  while (!ready()) sched_yield();
}

// A thread inherits the cores of the one that starts it, and OpenMP may have bound that one to a
// core of its own; then the new thread takes any of the others.
void leave_bound_core() {
#if defined(__linux__)
  if (!std::getenv("GOMP_CPU_AFFINITY") && !std::getenv("OMP_PROC_BIND")) return;
  cpu_set_t inherited, others;
  if (sched_getaffinity(0, sizeof(inherited), &inherited) || CPU_COUNT(&inherited) > 1) return;
  CPU_ZERO(&others);
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (!CPU_ISSET(core, &inherited)) CPU_SET(core, &others);
  }
  sched_setaffinity(0, sizeof(others), &others);  // fails, and changes nothing, if there is none
#endif
}

class Workers {
 public:
  void run(int threads, const std::function<void(int)>& body) {
    const std::lock_guard<std::mutex> one_at_a_time(running_);
    while (static_cast<int>(workers_.size()) < threads - 1) {
      const int number = static_cast<int>(workers_.size()) + 1;
      const unsigned seen = job_.load();
      workers_.emplace_back([this, number, seen] { work(number, seen); });
      workers_.back().detach();
    }
    body_ = &body;
    threads_ = threads;
    busy_.store(static_cast<int>(workers_.size()));
    {
      const std::lock_guard<std::mutex> lock(sleeping_);
      job_.fetch_add(1);
    }
    wake_.notify_all();
    body(0);
    spin_until([&] { return busy_.load(std::memory_order_acquire) == 0; });
  }

 private:
  void work(int number, unsigned seen) {
    leave_bound_core();
    for (;;) {
      for (int i = 0; i < kSpins + kOffers && job_.load(std::memory_order_acquire) == seen; ++i) {
        i < kSpins ? relax() : static_cast<void>(sched_yield());
      }
      if (job_.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(sleeping_);
        wake_.wait(lock, [&] { return job_.load() != seen; });
      }
      ++seen;
      if (number < threads_) (*body_)(number);
      busy_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::mutex running_, sleeping_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
  std::atomic<unsigned> job_{0};
  std::atomic<int> busy_{0};
  const std::function<void(int)>* body_ = nullptr;
  int threads_ = 0;
};

}  // namespace

Teams::Teams(std::int64_t images, std::int64_t threads)
    : count(images >= 4 * threads ? threads : std::max<std::int64_t>(1, std::gcd(images, threads))),
      members(threads / count) {}

void run_threads(int threads, const std::function<void(int)>& body) {
  if (threads == 1) return body(0);
  // Never destroyed: sleeping threads must not outlive it. A forked child has no threads but its
  // own and starts afresh.
  static Workers* workers = nullptr;
  static pid_t owner = 0;
  static std::mutex starting;
  Workers* current;
  {
    const std::lock_guard<std::mutex> lock(starting);
    if (owner != getpid()) {
      workers = new Workers;
      owner = getpid();
    }
    current = workers;
  }
  current->run(threads, body);
}

void Barrier::wait() {
  if (threads_ == 1) return;
  const unsigned round = round_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    round_.store(round + 1, std::memory_order_release);
    return;
  }
  spin_until([&] { return round_.load(std::memory_order_acquire) != round; });
}

}  // namespace agf
