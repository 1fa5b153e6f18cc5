// For a process that preloads this library (LD_PRELOAD): at SIGUSR2 a kernel traps beside those of the process, which ends
// the device's context, as a fault of the hardware would. bench/device-lost.ts is such a process.
#include <atomic>
#include <chrono>
#include <csignal>
#include <thread>

namespace {

std::atomic<bool> wanted{false};

__global__ void trap() { __trap(); }

void await_signal() {
  while (!wanted) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  trap<<<1, 1>>>();
  cudaDeviceSynchronize();
}

__attribute__((constructor)) void listen() {
  struct sigaction action = {};
  action.sa_handler = [](int) { wanted = true; };
  sigaction(SIGUSR2, &action, nullptr);
  std::thread(await_signal).detach();
}

}  // namespace
