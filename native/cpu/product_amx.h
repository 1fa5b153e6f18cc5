#pragma once
#include "product.h"

namespace ingot::cpu::INGOT_ISA {

#if defined(INGOT_ISA_amx)
// product() on tiles: of bf16, int8 and int4 weights, for as many rows as repay them; else false.
bool amx_product(const Context&, const Input& x, const Factors& factors, const Epilogue&, const Matrix& out);
#endif

}  // namespace ingot::cpu::INGOT_ISA
