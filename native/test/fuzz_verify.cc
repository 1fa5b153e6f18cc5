// libFuzzer entry: clang++ -std=c++20 -g -fsanitize=fuzzer,address,undefined native/test/fuzz_verify.cc
//   native/core/{plan_view,verify,verify_operands,verify_memory,verify_params}.cc && ./a.out native/test/plans
#include "../core/plan_view.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ingot::PlanView plan{};
  (void)ingot::verify({reinterpret_cast<const std::byte*>(data), size}, plan);
  return 0;
}
