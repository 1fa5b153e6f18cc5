#!/bin/bash
# On a GPU host, in the folder where a bundle (bench/bundle.sh) was unpacked: checks in both modes, op cases, the parity
# matrix and native tests of this build, beside the compiling of packages of random weights on the other cores; then
# speeds, with nothing beside them. Results and logs go to a folder; the last lines say what failed.
#
#   bench/device-run.sh results [--checks] [--tests folder] [--packages 'shape:formats ...']
#     [--speeds 'options of dist/bench/device.js']
#
#   bench/device-run.sh results --checks --packages 'Llama-3.1-8B:none,fp8 Llama-3.2-1B:none' \
#     --speeds '--shapes Llama-3.1-8B --formats none,fp8 --batches 1,128'
#
# `--speeds` may be given several times, and runs in turn, each to results/speeds-N.json. `--tests` names a folder with
# linear_test, attention_test, sample_test and liblose_device.so of build-cuda. INGOT_DEVICE_MODELS names a folder where
# packages stay.
set -u
usage() { sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
[ $# -gt 0 ] || usage
out=$(realpath -m -- "$1") checks= packages= tests= speeds=()
shift
while [ $# -gt 0 ]; do
  case $1 in
    --checks) checks=yes ;;
    --packages) packages=$2; shift ;;
    --speeds) speeds+=("$2"); shift ;;
    --tests) tests=$(realpath -- "$2"); shift ;;
    *) usage ;;
  esac
  shift
done
node=bin/node
[ -x "$node" ] || node=node
mkdir -p "$out"
models=${INGOT_DEVICE_MODELS:-}
[ -n "$models" ] || { models=$(mktemp -d); trap 'rm -rf "$models"' EXIT; }
failed=()

# Runs a command to a log and names it if it fails; seconds on stderr.
stage() {
  local name=$1 start=$SECONDS
  shift
  "$@" >"$out/$name.out" 2>"$out/$name.log" || failed+=("$name: $?")
  echo "$name: $((SECONDS - start)) s" >&2
}
device() { "$node" dist/bench/device.js --models "$models" "$@"; }
prepare() {
  local each
  for each in $packages; do
    device --checks '' --prepare --shapes "${each%%:*}" --formats "${each#*:}" || return
  done
}

prepare >"$out/prepare.log" 2>&1 &
preparing=$!
if [ -n "$checks" ]; then
  lose=()
  [ -z "$tests" ] || lose=(--lose "$tests/liblose_device.so")
  for test in attention_test linear_test sample_test; do
    [ ! -x "$tests/$test" ] || stage "$test" "$tests/$test"
  done
  stage checks device --formats none,q8,q4,fp8 --deterministic false "${lose[@]}"
  stage checks-deterministic device --formats none,q8,q4,fp8 --deterministic true --checks goldens,tasks
  for mode in '' --deterministic; do
    stage "ops$mode" "$node" dist/cli/main.js parity --ops --quick --backend cuda $mode
  done
  stage matrix "$node" dist/cli/main.js parity --matrix parity/goldens/*/ --backends reference,cuda
fi
wait "$preparing" || failed+=("prepare: $?")
for i in "${!speeds[@]}"; do
  # shellcheck disable=SC2086
  stage "speeds-$i" device --checks '' --reuse ${speeds[$i]}
  mv "$out/speeds-$i.out" "$out/speeds-$i.json"
done
grep -hs FAIL "$out"/*.log "$out"/*.out | head -40
[ ${#failed[@]} -eq 0 ] || { printf 'failed: %s\n' "${failed[@]}"; exit 1; }
echo 'all passed'
