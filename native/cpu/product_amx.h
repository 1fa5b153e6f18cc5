#pragma once
#include "product.h"

namespace ingot::cpu::INGOT_ISA {

#if defined(INGOT_ISA_amx)
// product() on tiles: of bf16, int8 and int4 weights, for as many rows as repay them; else false.
bool amx_product(const Context&, const Input& x, const Factors& factors, const Epilogue&, const Matrix& out);

// Whether what one linear leaves for the next stays the tiles that the latter multiplies: of many rows, nothing else is
// made of it there, and it takes a half or a quarter of the memory. Both ask, and are told the same.
bool leaves_tiles(const Context&, const Call& writer, const Call& reader);
#endif

}  // namespace ingot::cpu::INGOT_ISA
