#include "thread_pool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "await.h"
#include "denormals.h"
#include "processors.h"
#include "thread_name.h"

namespace ingot {

struct ThreadPool::Impl {
  // Worker i runs part i of each fork, unless the caller got to it first. One cache line each, so that a worker polls its
  // own line only.
  struct alignas(64) Worker {
    std::atomic<uint32_t> forks{0};    // offered to this worker so far
    std::atomic<uint32_t> claimed{0};  // taken so far, by the worker or the caller; forks or one less
    std::atomic<bool> pinned{false};   // wanted; the worker follows at its next fork

    // Whether the part of `fork` is the claimer's to run. One that comes late finds it taken, so that the task of a fork
    // is read by nobody once that fork has been joined.
    bool claim(uint32_t fork) {
      uint32_t before = fork - 1;
      return claimed.compare_exchange_strong(before, fork);
    }
  };

  // Leases are granted in the order of their requests.
  std::mutex mutex;
  std::condition_variable turn;
  uint64_t next_ticket = 0, serving = 0;

  // Owned by the holder of the lease.
  unsigned threads = 1;
  std::vector<Worker*> workers;  // never freed: their threads live as long as the process

  // Written by the caller before it forks, read by workers after.
  Task task = nullptr;
  void* context = nullptr;
  unsigned count = 0;
  alignas(64) std::atomic<uint32_t> running{0};

  // Where a thread is held; a new one is wherever the thread was that made it.
  enum class Held : uint8_t { unknown, nowhere, to_core };

  // Moves the calling thread between core `index` and all of them, if `wanted` is not how it is.
  static void pin_self(Held& held, bool wanted, unsigned index) {
    const Held target = wanted ? Held::to_core : Held::nowhere;
    if (held == target) return;
    held = target;
    static_cast<void>(wanted ? hold_to_core(index) : let_go());  // refused: the scheduler chooses, as before
  }

  void work(Worker& worker, unsigned index) {
    char name[16];
    std::snprintf(name, sizeof name, "ingot-%u", index);
    enter_thread(name);
    const FlushDenormals flush;
    Held held = Held::unknown;
    for (uint32_t seen = 0;;) {
      seen = await_change(worker.forks, seen);
      pin_self(held, worker.pinned.load(std::memory_order_relaxed), index);
      if (!worker.claim(seen)) continue;
      task(context, index, count);
      if (running.fetch_sub(1) == 1) running.notify_one();
    }
  }

  // Runs the parts that no worker has begun: one whose thread waits for a processor must not be waited for in turn.
  void take_over() {
    for (unsigned i = 1; i < count; ++i) {
      Worker& worker = *workers[i - 1];
      if (!worker.claim(worker.forks.load(std::memory_order_relaxed))) continue;
      task(context, i, count);
      running.fetch_sub(1);
    }
  }

  // Makes `wanted` threads, the caller included, or as many as the system allows.
  unsigned grow(unsigned wanted) {
    while (workers.size() + 1 < wanted) {
      const unsigned index = unsigned(workers.size()) + 1;
      try {
        workers.reserve(index);
        auto worker = std::make_unique<Worker>();
        // Detached: a worker waits for its next fork until the process ends, and touches nothing that an exit destroys.
        std::thread([this, &worker = *worker, index] { work(worker, index); }).detach();
        workers.push_back(worker.release());
      } catch (const std::exception&) {
        return index;
      }
    }
    return wanted ? wanted : 1;
  }
};

ThreadPool::ThreadPool() : impl_(new Impl) {}
ThreadPool::~ThreadPool() = default;

ThreadPool& ThreadPool::shared() {
  // Never destroyed: workers wait inside it until the process ends.
  static ThreadPool* const pool = new ThreadPool;
  return *pool;
}

ThreadPool::Lease::Lease(ThreadPool& pool, unsigned threads, bool pinned) : pool_(pool) {
  Impl& impl = *pool.impl_;
  std::unique_lock lock(impl.mutex);
  const uint64_t ticket = impl.next_ticket++;
  impl.turn.wait(lock, [&] { return impl.serving == ticket; });
  impl.threads = impl.grow(threads);
  for (unsigned i = 0; i + 1 < impl.threads; ++i) impl.workers[i]->pinned.store(pinned, std::memory_order_relaxed);
  thread_local Impl::Held held = Impl::Held::nowhere;
  Impl::pin_self(held, pinned, 0);
}

ThreadPool::Lease::~Lease() {
  Impl& impl = *pool_.impl_;
  {
    const std::lock_guard lock(impl.mutex);
    impl.threads = 1;
    ++impl.serving;
  }
  impl.turn.notify_all();
}

unsigned ThreadPool::threads() const { return impl_->threads; }

void ThreadPool::run(Task task, void* context) {
  Impl& impl = *impl_;
  const unsigned count = impl.threads;
  if (count == 1) return task(context, 0, 1);
  impl.task = task;
  impl.context = context;
  impl.count = count;
  impl.running.store(count - 1, std::memory_order_relaxed);
  for (unsigned i = 0; i + 1 < count; ++i) {
    impl.workers[i]->forks.fetch_add(1);
    impl.workers[i]->forks.notify_one();
  }
  task(context, 0, count);
  // Time for workers that have a processor to notice the fork.
  constexpr auto kNotice = std::chrono::microseconds(2);
  if (poll(kNotice, [&] { return impl.running.load(std::memory_order_acquire) == 0; })) return;
  impl.take_over();
  for (uint32_t left; (left = impl.running.load(std::memory_order_acquire)) != 0;) await_change(impl.running, left);
}

}  // namespace ingot
