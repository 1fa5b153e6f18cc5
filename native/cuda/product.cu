#include "product.h"

#include <algorithm>

#include "product_kernels.h"

namespace ingot::cuda {
namespace {

constexpr uint32_t kStreamed = 4;     // up to these rows, weights are streamed
constexpr uint32_t kMostStreamed = 8; // the same where rows leave room
constexpr uint32_t kTiled = 128;      // up to these, one launch of the tile kernel: as many whatever the rows
constexpr uint32_t kMostPasses = 4;   // over the weights: more of them are never fastest

// Of our own kernels for more than a few rows: the tile kernel, whose bits are those of the stream, or in the default mode
// that of e4m3 or int8.
Choice own_of(const Device& device, const Product& p, bool deterministic) {
  if (!tile_can(device, p)) return Choice::stream;
  return !deterministic && tile_rounded_can(device, p) ? Choice::tile_rounded : Choice::tile;
}

// Rows of x take shared memory from the L1, where weights lie on their way to registers: more than a few rows leave too
// little for two blocks of a multiprocessor. The tile kernel is slowest with int4, which it expands for every tile.
bool streams(const Device& device, const Product& p) {
  const bool alone = ceil_div(p.tiles(), p.branches) <= uint32_t(device.processors);
  const uint32_t most = alone || p.dtype == DType::i4 || !tile_can(device, p) ? kMostStreamed : kStreamed;
  return p.tokens() <= most && stream_passes(device, p) == 1;
}

// The stream where one pass over the weights is enough; many rows by cuBLASLt in the default mode.
Choice rule_of(const Device& device, const Product& p, bool deterministic) {
  if (streams(device, p)) return Choice::stream;
  const Choice own = own_of(device, p, deterministic);
  const bool many = own == Choice::stream || p.tokens() > kTiled;
  return many && !deterministic && blas_can(p) ? Choice::blas : own;
}

cudaError_t run(const Context& context, const Product& p, Choice choice) {
  switch (choice) {
    case Choice::stream: return product_stream(context, p);
    case Choice::tile: return product_tile(context, p);
    case Choice::tile_rounded: return product_tile_rounded(context, p);
    case Choice::blas:
    case Choice::blas_2:
    case Choice::blas_3:
    case Choice::blas_4: {
      const cudaError_t error = product_blas(context, p);
      if (error != cudaErrorNotSupported) return error;
      return run(context, p, own_of(context.device, p, context.shape.deterministic));
    }
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace

cudaError_t product(const Context& context, const Product& p) {
  if (p.tokens() == 0) return cudaSuccess;
  if (p.dtype == DType::f32) return product_f32(context, p);
  const Choice rule = rule_of(context.device, p, context.shape.deterministic);
  return run(context, p, context.choice == Choice::rules ? rule : context.choice);
}

// In the deterministic mode only those whose bits are the same.
Choices product_choices(const Device& device, const Product& p, bool deterministic) {
  if (p.dtype == DType::f32) return {};
  Choices choices{0, rule_of(device, p, deterministic)};
  choices.add(choices.rule);
  if (stream_passes(device, p) <= kMostPasses) choices.add(Choice::stream);
  if (tile_can(device, p)) choices.add(Choice::tile);
  if (!deterministic && tile_rounded_can(device, p)) choices.add(Choice::tile_rounded);
  if (!deterministic && blas_can(p))
    for (const Choice blas : {Choice::blas, Choice::blas_2, Choice::blas_3, Choice::blas_4}) choices.add(blas);
  return choices;
}

size_t product_choice_workspace(const Product& p, Choice choice) {
  if (choice == Choice::tile) return tile_workspace(p);
  if (choice == Choice::tile_rounded) return tile_rounded_workspace(p);
  return choice >= Choice::blas && choice <= Choice::blas_4 ? blas_workspace(p) : 0;
}

// Both modes may ask for up to p's rows. What the tile kernel takes for two or more is enough for as many rounded ones.
size_t product_workspace(const Device& device, const Product& p) {
  if (p.dtype == DType::f32) return 0;
  return std::max(product_choice_workspace(p, rule_of(device, p, true)),
                  product_choice_workspace(p, rule_of(device, p, false)));
}

size_t product_shared(const Product& p) { return p.dtype == DType::f32 ? 0 : stream_shared(p); }

}  // namespace ingot::cuda
