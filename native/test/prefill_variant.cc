// linear() of one instruction set and nothing else, built by variants.sh for prefill_bench.
#include "cpu/product.cc"
#include "cpu/product_amx.cc"
#include "cpu/linear.cc"
