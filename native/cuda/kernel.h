// What a CUDA kernel's launcher sees. A launcher is one function of an opcode, bound when a model is opened. It is called
// on the host while a step is submitted or captured into a graph, and only enqueues work on one stream: it never
// synchronises, allocates, or reads device memory. What depends on a step's content is read on the device.
#pragma once
#include <cuda_runtime.h>

#include "../core/kernel.h"

namespace ingot::cuda {

// The step's arrays (abi/step.ts) as device pointers, same fields and shapes as ingot::Step. Counts are those of the
// launch: of a captured bucket, they are the bucket's, and lanes beyond the step's own are padding: token 0 at position 0
// of a sequence of length 1 whose blocks are all the dump block 0. Results of padding are never read.
using DeviceStep = Step;

// What a launch may rely on of the step, known on the host.
struct Shape {
  uint32_t max_length;  // of any sequence after this step: the bucket's when captured, so a bound, not a value
  bool decode;          // every sequence has exactly one token
  bool deterministic;   // the bits of a row may not depend on the counts: no choice by `tokens`, `rows`, `sequences`
};

struct Device {
  int ordinal, major, minor, processors;
  size_t shared_bytes;  // of a block, opted in
};

// Device memory of one instruction, sized when the model was opened: what `<op>_workspace` asked for. Those of an opcode
// share it, apart from others of it that keep no state. Zeroed once, at open: what is kept in it must be left as it was
// found.
struct Workspace {
  std::byte* data;
  size_t bytes;
};

// Which of the kernels that can serve a launch it takes. In the deterministic mode, all of them give the same bits.
// tile_rounded is tile with rows of x rounded to what the weights are, blas_2 to blas_4 are the algorithms that cuBLASLt
// would take next.
enum class Choice : uint8_t { rules, stream, tile, tile_rounded, blas, blas_2, blas_3, blas_4, lean, wide, many };
inline constexpr const char* kChoiceNames[] = {"rules",  "stream", "tile", "tile_rounded", "blas", "blas_2",
                                               "blas_3", "blas_4", "lean", "wide",      "many"};

// Those that can, as bits by Choice, and the one that the opcode's rules take. None: there is nothing to choose.
struct Choices {
  uint32_t can = 0;
  Choice rule = Choice::rules;

  void add(Choice choice) { can |= 1u << uint32_t(choice); }
  bool has(Choice choice) const { return can >> uint32_t(choice) & 1; }
};

struct Context {
  const DeviceStep& step;
  const Shape& shape;
  const Device& device;
  Workspace workspace;
  cudaStream_t stream;
  uint32_t* launches;  // counts every kernel enqueued; `launch` of launch.h adds to it
  Choice choice = Choice::rules;  // what was measured to be fastest (ADR 0013); one that can serve the call
};

// Matrices, weights and states of Call hold device pointers. Matrix.rows is the launch's count. A register is f32 as the
// plan says, but for one that only products read as `x` (without norm): bind makes that bf16 (f16 for f16 weights),
// Matrix.dtype says so, and its stride is that of the plan.
// Weights: `form: 'row'` as stored. Tiled ones are uploaded as repack.h says: row-major (rows, cols), bf16, f16 and f32
// as they are; int8 row-major; e4m3 row-major, each four as e4m3_place of repack.h has them; int4 row-major, two a byte,
// low nibble first; scales f16 row-major (rows, blocks of 256), of e4m3 f32 (rows); sub-scales int8 row-major (rows,
// groups of 32). Columns are padded with zeros to a multiple of 32 elements and rows to 16.
using Kernel = cudaError_t (*)(const Context&, const Call&);
// Bytes of workspace for the largest launch that `limits` allows (rows of every matrix at its space's capacity).
using WorkspaceBytes = size_t (*)(const Device&, const Call&);

// Bytes of shared memory without which a call cannot be launched, whatever the step: a block's, of the leanest kernel
// that will do. Rows of matrices are unknown; weights and states point to something, which is not on the device.
using SharedBytes = size_t (*)(const Call&);

// What can serve a launch of the call with these rows.
using ChoicesOf = Choices (*)(const Device&, const Shape&, const Call&);
// Bytes of workspace that a choice needs for such a launch.
using ChoiceBytes = size_t (*)(const Call&, Choice);

struct Entry {
  Kernel kernel;
  WorkspaceBytes workspace;      // nullptr: none
  SharedBytes shared;            // nullptr: no more than every device has
  ChoicesOf choices;             // nullptr: there is nothing to choose
  ChoiceBytes choice_workspace;  // nullptr: no more than `workspace`
};

}  // namespace ingot::cuda
