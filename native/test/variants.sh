#!/usr/bin/env bash
# Builds native/test/prefill_bench or attention_bench, with other builds of the kernel beside the present one, to be timed
# in one run:
#   native/test/variants.sh prefill|attention OUT [LIST [emulated]]
# LIST has a line for each, NAME EXACT REVISION FLAGS: a C++ name; 1, or 0 where bits may differ; a git revision, or "."
# for the working tree; options of the compiler, such as -D of a constant. Variants are of the instruction set amx, over
# tiles in software where `emulated` is given. OUT needs nothing of the machine that it is built on.
set -euo pipefail
usage='usage: variants.sh prefill|attention OUT [LIST [emulated]]'
kernel=${1:?$usage} out=$(realpath "${2:?$usage}") list=$(realpath "${3:-/dev/null}") tiles=${4:-}
cd "$(dirname "$0")/../.."
work=$PWD/build-variants
isa='-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512 -mavx512vnni
  -mavx512bf16 -mamx-tile -mamx-int8 -mamx-bf16 -DINGOT_ISA_amx=1'
common='-std=c++20 -O3 -Wall -Wextra -ffp-contract=off -fno-math-errno -fvisibility=hidden'
bench=
if [ "$tiles" = emulated ]; then
  isa="$isa -include $PWD/native/test/tiles.h" bench=-DINGOT_VARIANTS_EMULATED
fi
compile() { ${CMAKE_CXX_COMPILER_LAUNCHER:-} "${CXX:-g++}" $common "$@"; }

mkdir -p "$work/objects"
cmake -S . -B "$work" -DCMAKE_BUILD_TYPE=Release > /dev/null
cmake --build "$work" --parallel 2 --target ingot_cpu > /dev/null

variants= objects=()
while read -r name exact revision flags; do
  case $name in '' | \#*) continue ;; esac
  sources=$PWD
  if [ "$revision" != . ]; then
    sources=$work/sources/$(git rev-parse "$revision")
    if [ ! -d "$sources" ]; then
      mkdir -p "$sources"
      git archive "$revision" native | tar -x -C "$sources"
    fi
  fi
  object=$work/objects/$kernel-$name.o
  compile $isa -DINGOT_ISA="$name" $flags -I"$sources/native" -c native/test/"$kernel"_variant.cc -o "$object" &
  while [ "$(jobs -r | wc -l)" -ge 2 ]; do wait -n; done
  variants="$variants V($name, $exact)" objects+=("$object")
done < "$list"
wait

compile $bench "-DINGOT_VARIANTS=$variants" -c "native/test/${kernel}_bench.cc" -o "$work/objects/$kernel.o"
"${CXX:-g++}" -static -s "$work/objects/$kernel.o" "${objects[@]}" "$work"/libingot_cpu.a "$work"/libingot_core.a -o "$out"
