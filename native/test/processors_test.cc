// Which cores a process may use, what its control groups pay for, and when threads are held to cores.
#include "../core/processors.h"

#include <cstdio>

#if defined(__linux__)
#include <sched.h>
#endif

#include <thread>

#include "../core/thread_pool.h"
#include "check.h"

using namespace ingot;

namespace {

void reads_quotas() {
  CHECK(parse_quota("max 100000") == 0);
  CHECK(parse_quota("150000 100000") == 1.5);
  CHECK(parse_quota("-1 100000") == 0);  // no limit, version 1
  for (const char* broken : {"", " ", "50000", "x y", "50000 0"}) CHECK(parse_quota(broken) == 0);
}

void counts_threads() {
  const std::vector<Core> four{{0, 4}, {1, 5}, {2, 6}, {3, 7}};
  CHECK((Processors{four, 0}.threads() == 4));
  CHECK((Processors{four, 2.9}.threads() == 2));
  CHECK((Processors{four, 0.5}.threads() == 1));
  CHECK((Processors{four, 64}.threads() == 4));
  CHECK(processors().threads() >= 1);
}

void decides_pinning() {
  const Processors four{{{0}, {1}, {2}, {3}}, 0};
  CHECK(pinning(Pin::automatic, 4, four).pinned);
  CHECK(!pinning(Pin::automatic, 3, four).pinned);
  CHECK(pinning(Pin::always, 3, four).pinned);
  CHECK(!pinning(Pin::always, 5, four).pinned);
  CHECK(!pinning(Pin::never, 4, four).pinned);
  CHECK(!pinning(Pin::always, 2, Processors{}).pinned);
  CHECK(!pinning(Pin::automatic, 1, Processors{{{0}}, 0}).pinned);
}

#if defined(__linux__)
unsigned allowed() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) == 0 ? unsigned(CPU_COUNT(&set)) : 0;
}

// Threads of a pinned lease are each on one core, another one each, and free again in the next.
void holds_threads() {
  const Processors& here = processors();
  const unsigned all = allowed();
  if (here.cores.size() < 2 || all > CPU_SETSIZE) return;
  ThreadPool& pool = ThreadPool::shared();
  for (const bool pinned : {false, true, true, false, true, false}) {
    const ThreadPool::Lease lease(pool, 2, pinned);
    // The caller may take over a part that its worker has not begun: what counts is the thread that runs it.
    struct Seen { cpu_set_t sets[2]; std::thread::id by[2]; } seen{};
    for (int tries = 0; tries < 1000; ++tries) {
      pool.run([](void* context, unsigned i, unsigned) {
        auto& seen = *static_cast<Seen*>(context);
        sched_getaffinity(0, sizeof seen.sets[i], &seen.sets[i]);
        seen.by[i] = std::this_thread::get_id();
      }, &seen);
      if (seen.by[0] != seen.by[1]) break;
    }
    for (unsigned i = 0; i < 2 && seen.by[0] != seen.by[1]; ++i) {
      CHECK(unsigned(CPU_COUNT(&seen.sets[i])) == (pinned ? here.cores[i].size() : all));
      CHECK(CPU_ISSET(here.cores[i].front(), &seen.sets[i]));
    }
  }
}
#endif

// A thread of the pool that wakes late lets go of its core while the process ends: made before what processors() finds,
// this is destroyed after anything that an exit destroys of it.
struct AtExit {
  ~AtExit() {
    size_t all = 0;
    for (const Core& core : processors().cores) all += core.size();
    CHECK(all == seen);
  }
  size_t seen = 0;
} at_exit;

}  // namespace

int main() {
  reads_quotas();
  counts_threads();
  decides_pinning();
#if defined(__linux__)
  holds_threads();
#endif
  const Processors& here = processors();
  for (const Core& core : here.cores) at_exit.seen += core.size();
  std::printf("%zu cores, quota %.2f, %u threads; %s\n", here.cores.size(), here.quota, here.threads(),
              pinning(Pin::automatic, here.threads()).reason.c_str());
}
