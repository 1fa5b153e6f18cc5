// attention() of one instruction set and nothing else, built by variants.sh for attention_bench.
#include "cpu/attention.cc"
