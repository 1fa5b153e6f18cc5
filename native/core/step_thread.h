// The thread that runs the steps of one model, in the order in which they are posted, so that a step never holds the
// thread that asked for it.
#pragma once
#include <array>
#include <atomic>
#include <cstdint>
#include <thread>

#include "await.h"
#include "thread_name.h"

namespace ingot {

class StepThread {
 public:
  // Jobs that may be posted and not have run.
  static constexpr uint32_t kDepth = 2;

  struct Job {
    void (*run)(void* context) = nullptr;  // must not throw
    void* context = nullptr;
  };

  // `spin`: how long it polls for the next job before it sleeps.
  explicit StepThread(std::chrono::nanoseconds spin = std::chrono::microseconds(40))
      : spin_(spin), thread_([this] { loop(); }) {}
  // Runs what is posted, then ends.
  ~StepThread() {
    post({});
    thread_.join();
  }
  StepThread(const StepThread&) = delete;
  StepThread& operator=(const StepThread&) = delete;

  // Runs `job` soon. One thread posts, and beyond kDepth jobs only after it learnt from the earliest that it ran.
  void post(Job job) {
    jobs_[posts_.load() % jobs_.size()] = job;
    posts_.fetch_add(1);
    posts_.notify_one();
  }

 private:
  void loop() {
    enter_thread("ingot-step");
    uint32_t posted = 0;
    for (uint32_t next = 0;; ++next) {
      if (next == posted) posted = await_change(posts_, posted, spin_);
      const Job job = jobs_[next % jobs_.size()];
      if (!job.run) return;
      job.run(job.context);
    }
  }

  const std::chrono::nanoseconds spin_;
  std::array<Job, 4> jobs_{};  // a power of two above kDepth: the last post is the end
  static_assert(kDepth < 4);
  std::atomic<uint32_t> posts_{0};
  std::thread thread_;
};

}  // namespace ingot
