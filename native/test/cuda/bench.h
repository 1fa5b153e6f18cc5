// Times launches as a step makes them: captured into a graph, one after the other, with programmatic launches.
#pragma once
#include <algorithm>

#include "device.h"

namespace ingot::test {

// Microseconds of one of `count` launches that `enqueue(i, stream)` makes: the median of several replays.
template <class F>
double time_launches(size_t count, const F& enqueue) {
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  cudaEvent_t begin, end;
  CUDA_CHECK(cudaStreamCreate(&stream));
  CUDA_CHECK(cudaEventCreate(&begin));
  CUDA_CHECK(cudaEventCreate(&end));
  CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (size_t i = 0; i < count; ++i) CUDA_CHECK(enqueue(i, stream));
  CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  CUDA_CHECK(cudaGraphInstantiate(&replay, graph, 0));
  std::vector<double> times;
  for (int i = 0; i < 12; ++i) {
    CUDA_CHECK(cudaEventRecord(begin, stream));
    CUDA_CHECK(cudaGraphLaunch(replay, stream));
    CUDA_CHECK(cudaEventRecord(end, stream));
    CUDA_CHECK(cudaStreamSynchronize(stream));
    float milliseconds;
    CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
    if (i > 1) times.push_back(double(milliseconds) * 1000 / double(count));
  }
  std::sort(times.begin(), times.end());
  cudaGraphExecDestroy(replay);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
  return times[times.size() / 2];
}

// Device memory of random numbers about 1 in size: a million, over and over.
template <class T, class F>
T* random_numbers(Arena& arena, size_t count, const F& convert) {
  constexpr size_t most = 1 << 20;
  static const std::vector<float> normal = [] {
    std::vector<float> numbers(most);
    Random random(1);
    for (float& x : numbers) x = float(random.normal());
    return numbers;
  }();
  std::vector<T> some(std::min(count, most));
  for (size_t i = 0; i < some.size(); ++i) some[i] = convert(normal[i]);
  T* to = reinterpret_cast<T*>(arena.take(count * sizeof(T), false));
  CUDA_CHECK(cudaMemcpy(to, some.data(), some.size() * sizeof(T), cudaMemcpyHostToDevice));
  for (size_t i = most; i < count; i += most)
    CUDA_CHECK(cudaMemcpyAsync(to + i, to, std::min(most, count - i) * sizeof(T), cudaMemcpyDeviceToDevice));
  CUDA_CHECK(cudaDeviceSynchronize());
  return to;
}

}  // namespace ingot::test
