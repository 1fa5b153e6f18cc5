// The thread that runs the steps of one model, so that a step never holds the thread that asked for it.
#pragma once
#include <atomic>
#include <cstdint>
#include <thread>
#include <utility>

#include "await.h"
#include "thread_name.h"

namespace ingot {

class StepThread {
 public:
  struct Job {
    void (*run)(void* context) = nullptr;  // must not throw
    void* context = nullptr;
  };

  // `spin`: how long it polls for the next job before it sleeps.
  explicit StepThread(std::chrono::nanoseconds spin = std::chrono::microseconds(40))
      : spin_(spin), thread_([this] { loop(); }) {}
  // Runs what is posted, then ends.
  ~StepThread() {
    stopping_.store(true);
    wake();
    thread_.join();
  }
  StepThread(const StepThread&) = delete;
  StepThread& operator=(const StepThread&) = delete;

  // Runs `job` soon. One at a time: the caller posts again only after it learnt from the job that it ran.
  void post(Job job) {
    job_ = job;
    wake();
  }

 private:
  void wake() {
    posts_.fetch_add(1);
    posts_.notify_one();
  }

  void loop() {
    enter_thread("ingot-step");
    uint32_t seen = 0;
    do {
      seen = await_change(posts_, seen, spin_);
      const Job job = std::exchange(job_, Job{});
      if (job.run) job.run(job.context);
    } while (!stopping_.load());
  }

  const std::chrono::nanoseconds spin_;
  Job job_;
  std::atomic<uint32_t> posts_{0};
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace ingot
