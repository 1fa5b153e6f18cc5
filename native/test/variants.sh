#!/usr/bin/env bash
# Builds native/test/prefill_bench or attention_bench, with other builds of the kernel beside the present one, to be timed
# in one run:
#   native/test/variants.sh prefill|attention OUT [LIST [amx|emulated|avx512_vnni]]
# LIST has a line for each, NAME EXACT REVISION FLAGS: a C++ name; 1, or 0 where bits may differ; a git revision, or "."
# for the working tree; options of the compiler, such as -D of a constant. Variants are of the instruction set amx, of
# amx over tiles in software, which machines with avx512_vnni run, or of avx512_vnni. OUT needs nothing of the machine
# that it is built on.
set -euo pipefail
usage='usage: variants.sh prefill|attention OUT [LIST [amx|emulated|avx512_vnni]]'
kernel=${1:?$usage} out=$(realpath "${2:?$usage}") list=$(realpath "${3:-/dev/null}") set=${4:-amx}
cd "$(dirname "$0")/../.."
work=$PWD/build-variants
isa='-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512 -mavx512vnni'
amx='-mavx512bf16 -mamx-tile -mamx-int8 -mamx-bf16 -DINGOT_ISA_amx=1'
common='-std=c++20 -O3 -Wall -Wextra -ffp-contract=off -fno-math-errno -fvisibility=hidden'
case $set in
  amx) isa="$isa $amx" ;;
  emulated) isa="$isa $amx -include $PWD/native/test/tiles.h" set=avx512_vnni ;;
  avx512_vnni) ;;
  *) echo "$usage" >&2; exit 2 ;;
esac
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

compile "-DINGOT_VARIANTS=$variants" "-DINGOT_VARIANTS_SET=\"$set\"" -c "native/test/${kernel}_bench.cc" -o "$work/objects/$kernel.o"
"${CXX:-g++}" -static -s "$work/objects/$kernel.o" "${objects[@]}" "$work"/libingot_cpu.a "$work"/libingot_core.a -o "$out"
