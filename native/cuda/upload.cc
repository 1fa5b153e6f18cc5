#include "upload.h"

#include <algorithm>
#include <cstring>

#include "../core/verify_rules.h"
#include "repack.h"

namespace ingot::cuda {
namespace {

constexpr uint64_t kAlign = 256;              // of every tensor; as many bytes may be read behind the last
constexpr size_t kChunk = size_t{64} << 20;   // bytes that are on their way at once, twice

// Tensors of the plan that some instruction uses as scales or sub-scales.
std::vector<bool> scales_of(const PlanView& plan) {
  std::vector<bool> scales(plan.tensors.size());
  for (const PlanInstruction& instruction : plan.instructions) {
    const OpDef& op = *find_op(instruction.opcode);
    for (int i = 0; i < op.weight_count; ++i)
      if (instruction.weights[i] != kNone && std::string_view(op.weights[i].name).ends_with("scales"))
        scales[instruction.weights[i]] = true;
  }
  return scales;
}

Weight logical(const PlanTensor& tensor) { return {nullptr, tensor.rows, tensor.cols, tensor.dtype, tensor.layout}; }

uint64_t bytes_on_device(const PlanTensor& tensor, bool exact) {
  return tensor.layout == Layout::row ? tensor.bytes : repacked_bytes(logical(tensor), exact);
}

// Bytes of a tile: 16 rows, as stored.
uint64_t tile_bytes(const Weight& weight) {
  return byte_size(weight.dtype, kRowPadding * round_up(weight.cols, kLayouts[size_t(weight.layout)].align));
}

// Two chunks of pinned memory and two of the device, so that a chunk is read from its file while the other one travels.
class Uploader {
 public:
  Uploader(cudaStream_t stream) : stream_(stream) {}
  ~Uploader() {
    cudaStreamSynchronize(stream_);
    for (Lane& lane : lanes_)
      if (lane.done) cudaEventDestroy(lane.done);
  }
  Fault prepare(size_t largest) {
    for (Lane& lane : lanes_) {
      if (Fault fault = PinnedMemory::allocate("the upload of weights", largest, lane.pinned)) return fault;
      if (Fault fault = DeviceMemory::allocate("the upload of weights", largest, lane.device)) return fault;
      if (Fault fault = fault_of(cudaEventCreateWithFlags(&lane.done, cudaEventDisableTiming), "uploading weights"))
        return fault;
    }
    return {};
  }
  // Bytes to `to` as they are, in chunks.
  Fault plain(const std::byte* from, size_t bytes, std::byte* to) {
    for (size_t at = 0; at < bytes; at += kChunk) {
      const size_t size = std::min(kChunk, bytes - at);
      Lane* lane;
      if (Fault fault = load(from + at, size, lane)) return fault;
      const cudaError_t sent = cudaMemcpyAsync(to + at, lane->pinned.data(), size, cudaMemcpyHostToDevice, stream_);
      if (Fault fault = finish(sent, *lane)) return fault;
    }
    return {};
  }
  Fault tiled(const Weight& weight, bool exact, std::byte* to) {
    const uint64_t tile = tile_bytes(weight);
    const uint32_t tiles = uint32_t(round_up(weight.rows, kRowPadding) / kRowPadding);
    const uint32_t step = uint32_t(std::max<uint64_t>(1, std::min<uint64_t>(kChunk / tile, 4000)));
    for (uint32_t at = 0; at < tiles; at += step) {
      const uint32_t count = std::min(step, tiles - at);
      Lane* lane;
      if (Fault fault = load(weight.data + at * tile, count * tile, lane)) return fault;
      cudaError_t sent = cudaMemcpyAsync(lane->device.data(), lane->pinned.data(), count * tile,
                                         cudaMemcpyHostToDevice, stream_);
      if (sent == cudaSuccess)
        sent = repack(weight, exact, lane->device.data(), at * kRowPadding, count * kRowPadding, to, stream_);
      if (Fault fault = finish(sent, *lane)) return fault;
    }
    return {};
  }

 private:
  struct Lane {
    PinnedMemory pinned;
    DeviceMemory device;
    cudaEvent_t done = nullptr;
  };
  // The next lane, once its last chunk has arrived, filled.
  Fault load(const std::byte* from, size_t bytes, Lane*& lane) {
    lane = &lanes_[next_ ^= 1];
    if (Fault fault = fault_of(cudaEventSynchronize(lane->done), "uploading weights")) return fault;
    std::memcpy(lane->pinned.data(), from, bytes);
    return {};
  }
  Fault finish(cudaError_t sent, Lane& lane) {
    return fault_of(sent == cudaSuccess ? cudaEventRecord(lane.done, stream_) : sent, "uploading weights");
  }

  cudaStream_t stream_;
  Lane lanes_[2];
  size_t next_ = 0;
};

}  // namespace

uint64_t DeviceWeights::bytes_of(const PlanView& plan) {
  const std::vector<bool> scales = scales_of(plan);
  uint64_t bytes = kAlign;
  for (size_t i = 0; i < plan.tensors.size(); ++i) bytes += round_up(bytes_on_device(plan.tensors[i], scales[i]), kAlign);
  return bytes;
}

Fault DeviceWeights::upload(const PlanView& plan, const Weights& weights, cudaStream_t stream, DeviceWeights& out) {
  const std::vector<bool> scales = scales_of(plan);
  if (Fault fault = DeviceMemory::allocate("the weights", bytes_of(plan), out.memory_)) return fault;
  size_t largest = 0;
  for (size_t i = 0; i < plan.tensors.size(); ++i) {
    const Weight& weight = weights[uint32_t(i)];
    const size_t least = weight.layout == Layout::row ? 1 : tile_bytes(weight);
    largest = std::max({largest, least, std::min<size_t>(plan.tensors[i].bytes, kChunk)});
  }
  Uploader uploader(stream);
  if (Fault fault = uploader.prepare(largest)) return fault;
  std::byte* to = out.memory_.data();
  for (size_t i = 0; i < plan.tensors.size(); ++i) {
    Weight weight = weights[uint32_t(i)];
    const bool row = weight.layout == Layout::row;
    if (Fault fault = row ? uploader.plain(weight.data, plan.tensors[i].bytes, to) : uploader.tiled(weight, scales[i], to))
      return fault;
    weight.data = to;
    weight.layout = Layout::row;
    out.tensors_.push_back(weight);
    to += round_up(bytes_on_device(plan.tensors[i], scales[i]), kAlign);
  }
  return fault_of(cudaStreamSynchronize(stream), "uploading weights");
}

}  // namespace ingot::cuda
