// What a kernel sees. A kernel is one function, bound when a model is opened and called once a step for the whole ragged
// batch; it splits its own work over the pool. It allocates nothing but scratch and returns nothing: every reason to
// refuse is found when the model is opened or when the step buffer is checked.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../gen/abi.h"

namespace ingot {

class ThreadPool;
class Scratch;

// A range of columns of a register: row r starts at data + r * stride.
struct Matrix {
  std::byte* data = nullptr;  // nullptr: absent
  size_t stride = 0;          // bytes
  uint32_t rows = 0;          // of this step
  uint32_t width = 0;         // elements
  DType dtype = DType::f32;

  explicit operator bool() const { return data != nullptr; }
  template <class T>
  T* row(size_t r) const { return reinterpret_cast<T*>(data + r * stride); }
};

// A weight in the layout that the plan names; 64-byte aligned, read-only.
struct Weight {
  const std::byte* data = nullptr;  // nullptr: absent
  uint32_t rows = 0, cols = 0;      // logical
  DType dtype = DType::f32;
  Layout layout = Layout::row;

  explicit operator bool() const { return data != nullptr; }
  template <class T>
  const T* as() const { return reinterpret_cast<const T*>(data); }
};

// A state: unit u (block or slot) is at base + u * size.
struct State {
  std::byte* base = nullptr;  // nullptr: absent
  size_t size = 0;            // bytes of a unit
  uint32_t block_tokens = 1;
  DType dtype = DType::f32;

  explicit operator bool() const { return base != nullptr; }
};

// The step buffer (abi/step.ts), checked: every index it holds is in range.
struct Step {
  uint32_t tokens, sequences, rows, blocks_per_sequence;
  const int32_t* token_ids;        // (tokens)
  const int32_t* positions;        // (tokens)
  const int32_t* token_sequence;   // (tokens) index into this step's sequences
  const int32_t* sequence_start;   // (sequences + 1) first token of each
  const int32_t* sequence_length;  // (sequences) positions known after this step
  const int32_t* sequence_slot;    // (sequences)
  const int32_t* block_table;      // (sequences, blocks_per_sequence)
  const int32_t* row_token;        // (rows)
  const SampleParams* sampling;    // (rows)
  const int32_t* history_ids;
  const BiasEntry* bias_entries;
};

constexpr size_t kMaxInputs = 8, kMaxOutputs = 4, kMaxWeights = 8, kMaxStates = 2;

// One instruction with its operands resolved, by position of the opcode's definition.
struct Call {
  Matrix inputs[kMaxInputs];
  Matrix outputs[kMaxOutputs];
  Weight weights[kMaxWeights];
  State states[kMaxStates];
  const void* params;  // the opcode's struct of gen/abi.h, fields of newer minors at their defaults
  // The calls right after and before this one where they are of the same kernel and a register passes between the two
  // alone: nobody else sees it unless steps are traced, so that they may agree on a form of it.
  const Call *reader = nullptr, *writer = nullptr;

  template <class P>
  const P& as() const { return *static_cast<const P*>(params); }
};

struct Context {
  const Step& step;
  ThreadPool& pool;
  Scratch& scratch;  // empty at the start of each instruction
  bool traced = false;  // every output is copied out: all are as the plan declares them
};

using Kernel = void (*)(const Context&, const Call&);

// A backend's kernels, by opcode id; nullptr: the opcode is not supported (compute/<backend>.ts says why).
struct KernelTable {
  const char* isa;
  Kernel kernels[kMaxOpcodes];
};

}  // namespace ingot
