// A pool of worker threads with a low-latency fork and join. One pool serves every model of the process.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>

namespace ingot {

class ThreadPool {
 public:
  // Shared by the process; grows to the largest number of threads asked for.
  static ThreadPool& shared();

  // Holds the pool for one step and limits it to `threads`, the caller included. Steps of several models take turns.
  class Lease {
   public:
    // `pinned`: hold each thread, the caller too, to a core of its own, the same one in every lease.
    Lease(ThreadPool& pool, unsigned threads, bool pinned = false);
    ~Lease();
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;

   private:
    ThreadPool& pool_;
  };

  unsigned threads() const;  // of the current lease

  // Runs task(context, i, n) for i in [0, n) once each, n = threads(); returns when all are done. The caller runs i = 0,
  // and what a worker has not begun by then. Nested calls are not allowed.
  using Task = void (*)(void* context, unsigned index, unsigned count);
  void run(Task task, void* context);

  // Calls body(begin, end) or body(begin, end, thread) on contiguous ranges that together cover [0, count), each a multiple of `grain` long but the
  // last. Which thread gets which range never changes a result: a kernel's output element belongs to one index.
  template <class Body>
  void parallel(size_t count, size_t grain, const Body& body) {
    struct Work { const Body* body; size_t count, grain; } work{&body, count, grain ? grain : 1};
    const size_t units = (count + work.grain - 1) / work.grain;
    if (units <= 1 || threads() == 1) {
      if (count) call(body, 0, count, 0);
      return;
    }
    run([](void* context, unsigned index, unsigned n) {
      const Work& w = *static_cast<Work*>(context);
      const size_t units = (w.count + w.grain - 1) / w.grain;
      const size_t begin = units * index / n * w.grain;
      size_t end = units * (index + 1) / n * w.grain;
      if (end > w.count) end = w.count;
      if (begin < end) call(*w.body, begin, end, index);
    }, &work);
  }

 private:
  template <class Body>
  static void call(const Body& body, size_t begin, size_t end, unsigned thread) {
    if constexpr (std::is_invocable_v<const Body&, size_t, size_t, unsigned>) body(begin, end, thread);
    else body(begin, end);
  }

  ThreadPool();
  ~ThreadPool();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace ingot
