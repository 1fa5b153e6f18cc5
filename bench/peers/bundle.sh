#!/bin/sh
# Packs what `npm run bench:peers -- --no-install` needs on a machine without network and npm: the peer, Ingot's compiled
# TypeScript and its run-time packages; with --node this node binary too. The addon is not in it: it is built there, from
# this working tree (cmake-js and node-addon-api are packed for that). Usage: bench/peers/bundle.sh out.tar.xz [--node]
set -eu
cd "$(dirname "$0")/../.."
out=${1:?usage: bench/peers/bundle.sh out.tar.xz [--node]}
test -d dist || { echo 'no dist/: npm run build:ts first' >&2; exit 2; }
test -d bench/peers/node_modules || (cd bench/peers && npm ci >&2)
files='dist package.json checkpoints/storyteller-7m bench/peers/package.json bench/peers/peer.js bench/peers/node_modules'
# production packages only, as the lock file says
for path in $(npm ls --omit=dev --all --parseable 2>/dev/null | sed -n "s|^$PWD/||p"); do files="$files $path"; done
if [ "${2:-}" = --node ]; then
  mkdir -p build/bin && cp "$(command -v node)" build/bin/node
  files="$files build/bin/node"
fi
# the source of llama.cpp and what only compilers and debuggers read
tar -cJf "$out" --exclude='node-llama-cpp/llama/gitRelease.bundle' --exclude='*.map' --exclude='*.d.ts' --exclude='*.test.js' $files
ls -l "$out" >&2
