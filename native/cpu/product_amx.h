#pragma once
#include "product.h"

namespace ingot::cpu::INGOT_ISA {

#if defined(INGOT_ISA_amx)
// Rows from which a tile product beats vectors: fewer leave most of a tile empty.
inline constexpr size_t kAmxRows = 5;

// product() for bf16 weights.
void amx_product(const Context&, const Matrix& x, const Weight& weight, const Epilogue&, const Matrix& out);
#endif

}  // namespace ingot::cpu::INGOT_ISA
