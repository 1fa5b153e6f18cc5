// Forks, leases, sleeping and waking of the shared pool; run under ThreadSanitizer too.
#include "../core/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

#include "../core/await.h"
#include "../core/step_thread.h"
#define INGOT_ISA portable
#define INGOT_ISA_portable 1
#include "../cpu/parallel.h"
#include "check.h"

using namespace ingot;

namespace {

double processor_seconds() { return double(std::clock()) / CLOCKS_PER_SEC; }

// Every index runs once, in each of many forks, at every thread count.
void covers_every_index() {
  ThreadPool& pool = ThreadPool::shared();
  for (unsigned threads : {1u, 2u, 3u, 8u, 5u}) {
    const ThreadPool::Lease lease(pool, threads);
    CHECK(pool.threads() == threads);
    std::vector<unsigned> seen(threads);
    for (int fork = 1; fork <= 300; ++fork) {
      pool.run([](void* context, unsigned i, unsigned n) {
        auto& counts = *static_cast<std::vector<unsigned>*>(context);
        CHECK(n == counts.size());
        ++counts[i];
      }, &seen);
      for (unsigned count : seen) CHECK(count == unsigned(fork));
    }
  }
}

// Ranges cover [0, count) once and begin at multiples of the grain.
void splits_ranges() {
  ThreadPool& pool = ThreadPool::shared();
  const ThreadPool::Lease lease(pool, 4);
  for (size_t count : {0, 1, 2, 3, 15, 16, 17, 100, 1000}) {
    for (size_t grain : {0, 1, 3, 16, 2000}) {
      std::vector<int> hits(count);
      pool.parallel(count, grain, [&](size_t begin, size_t end) {
        CHECK(begin % (grain ? grain : 1) == 0);
        for (size_t i = begin; i < end; ++i) ++hits[i];
      });
      for (int hit : hits) CHECK(hit == 1);
    }
  }
}

// What is shared covers [0, count) once, in runs of at most `run`; while a thread is held up, others do all but the unit
// that it is at.
void shares_ranges() {
  ThreadPool& pool = ThreadPool::shared();
  Scratch scratch;
  const Step step{};
  const Context context{step, pool, scratch};
  for (unsigned threads : {1u, 2u, 3u, 5u}) {
    const ThreadPool::Lease lease(pool, threads);
    for (size_t count : {0, 1, 2, 7, 64, 1000}) {
      for (size_t run : {1, 4, 2000}) {
        std::vector<int> hits(count);
        cpu::portable::each_shared(context, count, run, [&](size_t begin, size_t end, unsigned thread) {
          CHECK(thread < threads && begin < end && end - begin <= run);
          for (size_t i = begin; i < end; ++i) ++hits[i];
        });
        scratch.reset();
        for (int hit : hits) CHECK(hit == 1);
      }
    }
  }
  const ThreadPool::Lease lease(pool, 2);
  for (size_t held : {0, 99}) {
    std::atomic<size_t> left{100};
    cpu::portable::each_shared(context, 100, 1, [&](size_t begin, size_t, unsigned) {
      left.fetch_sub(1);
      while (begin == held && left.load()) std::this_thread::yield();
    });
    scratch.reset();
    CHECK(left == 0);
  }
}

// What one fork writes, the next reads: a running sum is exact.
void orders_forks() {
  ThreadPool& pool = ThreadPool::shared();
  const ThreadPool::Lease lease(pool, 3);
  std::vector<uint64_t> values(96, 1);
  for (int fork = 0; fork < 2000; ++fork) {
    const uint64_t last = values.back();
    pool.parallel(values.size(), 1, [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) values[i] = last + 1;
    });
  }
  for (uint64_t value : values) CHECK(value == 2001);
}

// Leases of several threads exclude each other, and all of them progress.
void serialises_leases() {
  ThreadPool& pool = ThreadPool::shared();
  uint64_t shared = 0;
  std::vector<std::thread> models;
  for (unsigned m = 0; m < 4; ++m) {
    models.emplace_back([&, m] {
      for (int step = 0; step < 100; ++step) {
        const ThreadPool::Lease lease(pool, 1 + m);
        for (int fork = 0; fork < 5; ++fork) {
          std::atomic<unsigned> ran{0};
          pool.parallel(64, 1, [&](size_t begin, size_t end) { ran += unsigned(end - begin); });
          CHECK(ran == 64);
          ++shared;
        }
      }
    });
  }
  for (auto& model : models) model.join();
  CHECK(shared == 4 * 100 * 5);
}

// Workers that slept wake up; while they sleep they use no processor.
void sleeps_when_idle() {
  ThreadPool& pool = ThreadPool::shared();
  for (int round = 0; round < 20; ++round) {
    const ThreadPool::Lease lease(pool, 4);
    std::atomic<unsigned> ran{0};
    pool.parallel(4, 1, [&](size_t, size_t) { ++ran; });
    CHECK(ran == 4);
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  const double before = processor_seconds();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  CHECK(processor_seconds() - before < 0.1);
}

// A part that takes long, as a preempted worker does, is waited for.
void waits_for_slow_parts() {
  ThreadPool& pool = ThreadPool::shared();
  const ThreadPool::Lease lease(pool, 3);
  for (size_t slow = 0; slow < 3; ++slow) {
    bool done = false;
    pool.parallel(3, 1, [&](size_t begin, size_t) {
      if (begin != slow) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      done = true;
    });
    CHECK(done);
  }
}

// Each posted job runs once, in order, however many are on their way; the last ones before the thread ends.
void runs_posted_jobs() {
  for (int round = 0; round < 200; ++round) {
    std::atomic<int> ran{0};
    const StepThread::Job job{[](void* context) { static_cast<std::atomic<int>*>(context)->fetch_add(1); }, &ran};
    {
      StepThread thread;
      for (int i = 1; i <= 3; ++i) {
        thread.post(job);
        if (i < 3) while (ran.load() != i) std::this_thread::yield();
      }
    }
    CHECK(ran == 3);
    const StepThread idle;
  }
  struct Numbered { std::atomic<uint32_t>* ran; uint32_t number; };
  std::atomic<uint32_t> ran{0};
  std::vector<Numbered> jobs;
  for (uint32_t i = 0; i < 5000; ++i) jobs.push_back({&ran, i});
  {
    StepThread thread;
    for (Numbered& each : jobs) {
      while (each.number - ran.load() >= StepThread::kDepth) std::this_thread::yield();
      thread.post({[](void* context) {
                     const auto& [ran, number] = *static_cast<Numbered*>(context);
                     CHECK(ran->fetch_add(1) == number);
                   },
                   &each});
    }
  }
  CHECK(ran == jobs.size());
}

// With one processor for all threads, nobody polls for long for one that cannot run: forks stay cheap.
void shares_one_processor() {
#if defined(__linux__)
  cpu_set_t all, one;
  CHECK(sched_getaffinity(0, sizeof all, &all) == 0);
  CPU_ZERO(&one);
  for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++cpu)
    if (CPU_ISSET(cpu, &all)) CPU_SET(cpu, &one);
  const auto pin = [](const cpu_set_t& set) {
    for (const auto& task : std::filesystem::directory_iterator("/proc/self/task"))
      sched_setaffinity(std::stoi(task.path().filename()), sizeof set, &set);
  };
  pin(one);
  ThreadPool& pool = ThreadPool::shared();
  constexpr int kForks = 3000;
  double seconds = 0;
  {
    const ThreadPool::Lease lease(pool, 3);
    std::atomic<int> ran{0};
    const double before = processor_seconds();
    for (int fork = 0; fork < kForks; ++fork) pool.parallel(3, 1, [&](size_t, size_t) { ++ran; });
    seconds = processor_seconds() - before;
    CHECK(ran == 3 * kForks);
  }
  pin(all);
  std::printf("fork and join of 3 threads on one processor: %.2f us\n", seconds / kForks * 1e6);
  CHECK(seconds / kForks < 25e-6);
#endif
}

// Nanoseconds of one `round`: the best of several batches, as others use this machine too.
template <class Round>
double nanoseconds(const Round& round) {
  constexpr int kBatches = 40, kRounds = 500;
  double best = 1e9;
  for (int batch = 0; batch < kBatches; ++batch) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kRounds; ++i) round();
    const std::chrono::duration<double, std::nano> elapsed = std::chrono::steady_clock::now() - start;
    best = std::min(best, elapsed.count() / kRounds);
  }
  return best;
}

// The least that two threads can do: one sets a flag, the other answers with its own.
double two_flags() {
  struct alignas(64) Flag { std::atomic<uint32_t> value{0}; } go, done;
  std::thread other([&] {
    for (uint32_t seen = 0;;) {
      const uint32_t now = go.value.load(std::memory_order_acquire);
      if (now == UINT32_MAX) return;
      if (now == seen) spin_pause();
      else done.value.store(seen = now, std::memory_order_release);
    }
  });
  uint32_t round = 0;
  const double ns = nanoseconds([&] {
    go.value.store(++round, std::memory_order_release);
    while (done.value.load(std::memory_order_acquire) != round) spin_pause();
  });
  go.value.store(UINT32_MAX);
  other.join();
  return ns;
}

void print_latency() {
  ThreadPool& pool = ThreadPool::shared();
  const auto empty = [&] { pool.run([](void*, unsigned, unsigned) {}, nullptr); };
  for (const bool pinned : {false, true}) {
    const ThreadPool::Lease lease(pool, 2, pinned);
    std::printf("fork and join of 2 threads%s: %.0f ns\n", pinned ? ", pinned" : "", nanoseconds(empty));
  }
  { const ThreadPool::Lease lease(pool, 2, false); }
  std::printf("two flags between 2 threads: %.0f ns\n", two_flags());
}

}  // namespace

int main() {
  covers_every_index();
  splits_ranges();
  shares_ranges();
  orders_forks();
  serialises_leases();
  sleeps_when_idle();
  waits_for_slow_parts();
  runs_posted_jobs();
  shares_one_processor();
  print_latency();
}
