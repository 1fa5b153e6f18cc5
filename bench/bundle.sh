#!/bin/sh
# Packs what a host without network needs into one archive: this node, the compiled TypeScript, its run-time packages, the
# addon, the CUDA library where it is built, goldens, the small checkpoints, and packages: those named, or storyteller-7m.
#
#   npm run build && npm run build:cuda && bench/bundle.sh ingot.tar.xz [package.ingot ...]
#
# The suffix says how it is compressed. There: tar -xf ingot.tar.xz && cd ingot && bin/node dist/cli/main.js doctor
# INGOT_BUNDLE_NODE names another node than the one that runs here, "none" leaves it out.
set -eu
usage='usage: bench/bundle.sh out.tar.xz [package.ingot ...]'
refuse() { echo "$*" >&2; exit 2; }
[ $# -gt 0 ] || refuse "$usage"
archive=$(realpath -m -- "$1")
shift
root=$(dirname -- "$(dirname -- "$(realpath -- "$0")")")
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
app=$stage/ingot
mkdir -p "$app/bin" "$app/build/Release" "$app/models" "$app/parity" "$app/checkpoints"

for package in "$@"; do
  [ -f "$package/manifest.json" ] || refuse "$package is no package: ingot compile <checkpoint> -o $package"
  cp -RL -- "$package" "$app/models/"
done

cd "$root"
[ -f build/Release/ingot.node ] && [ -d dist ] || refuse 'this tree is not built: npm run build'
node dist/parity/record-code.js --check || exit 2
[ $# -gt 0 ] || node dist/cli/main.js compile checkpoints/storyteller-7m -o "$app/models/storyteller-7m.ingot" --quiet >&2

cp -R dist package.json LICENSE "$app"
find "$app/dist" \( -name '*.map' -o -name '*.d.ts' -o -name '*.test.js' \) -delete
cp build/Release/ingot.node "$app/build/Release"
if [ -f build/Release/libingot_cuda.so ]; then cp build/Release/libingot_cuda.so "$app/build/Release"
else echo 'without CUDA: npm run build:cuda makes its library' >&2; fi
cp -R parity/goldens "$app/parity"
mkdir -p "$app/bench/peers" && cp bench/peers/pytorch.py "$app/bench/peers"
cp bench/device-run.sh "$app/bench"
cp -R checkpoints/storyteller-7m checkpoints/storyteller-1m "$app/checkpoints"

# production packages only, as the lock file says; the first line is this folder
npm ls --omit=dev --all --parseable --silent | sed 1d | while IFS= read -r path; do
  folder=$app/$(dirname -- "$(realpath --relative-to=. -s -- "$path")")
  mkdir -p "$folder"
  cp -R -- "$path" "$folder"
done

node=${INGOT_BUNDLE_NODE:-$(node -p process.execPath)}
if [ "$node" != none ]; then
  ! ldd "$node" | grep -q libnode || refuse "$node needs libnode.so: take one of nodejs.org, by INGOT_BUNDLE_NODE"
  cp -L -- "$node" "$app/bin/node"
  node=$app/bin/node
else
  node=$(command -v node)
fi
# what is packed must run with nothing else there
(cd / && env -i "$node" "$app/dist/cli/main.js" doctor --quiet >/dev/null) || refuse 'what was packed does not run'
tar -caf "$archive" -C "$stage" ingot
ls -l -- "$archive" >&2
