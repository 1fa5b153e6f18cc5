#!/bin/sh
# Packs what a GPU host without network needs: this node, the compiled TypeScript, its run-time packages, the addon and the
# CUDA library, goldens and the small checkpoints. There: tar -xf ingot.tar.xz && build/bin/node dist/bench/device.js --help
# Usage: npm run build && npm run build:cuda && bench/bundle.sh out.tar.xz [package.ingot ...]
set -eu
cd "$(dirname "$0")/.."
out=${1:?usage: bench/bundle.sh out.tar.xz [package.ingot ...]}
shift
for built in dist build/Release/ingot.node build/Release/libingot_cuda.so; do
  test -e "$built" || { echo "no $built: npm run build && npm run build:cuda first" >&2; exit 2; }
done
files='dist package.json build/Release/ingot.node build/Release/libingot_cuda.so parity/goldens checkpoints/storyteller-7m checkpoints/storyteller-1m'
# production packages only, as the lock file says
for path in $(npm ls --omit=dev --all --parseable 2>/dev/null | sed -n "s|^$PWD/||p"); do files="$files $path"; done
mkdir -p build/bin && cp "$(command -v node)" build/bin/node
tar -cJf "$out" --exclude='*.map' --exclude='*.d.ts' --exclude='*.test.js' $files build/bin/node "$@"
ls -l "$out" >&2
