#!/usr/bin/env bash
# Everything that takes a GPU, in one command and within nine minutes: builds with nvcc, and beside
# that without CUDA where CuPy is there; runs the CUDA tests; races whole samplings and the
# operators; runs the operators under compute-sanitizer and compiled by NVRTC. Needs an NVIDIA GPU,
# a CUDA toolkit, and a Python with a CUDA build of torch, pytest and what pyproject.toml asks for;
# no network. Each part writes down what it finds, whatever becomes of the others.
# Usage: benchmarks/gpu.sh [FOLDER [REFERENCE]]
#   FOLDER     where results go: benchmarks/results/ unless given
#   REFERENCE  a checkout of the EDM2 reference implementation, to be raced too
set -uo pipefail
reference=${2:+--reference=$(realpath "$2")}
mkdir -p "${1:-$(dirname "$0")/results}" && results=$(realpath "${1:-$(dirname "$0")/results}")
cd "$(dirname "$0")/.." || exit 1
seconds=530  # of everything
python=${PYTHON:-python3}
export PYTHONPATH="$PWD" PYTHONUNBUFFERED=1 results python

"$python" -c 'import sys, torch; torch.cuda.is_available() or sys.exit(
    f"gpu.sh: torch {torch.__version__} must see a CUDA device, got none")' || exit 1

log="$results/gpu.log"
: >"$log"
failed=0

# step SECONDS NAME COMMAND...: runs it with a limit, and says how it went.
step() {
  local limit=$1 name=$2 start=$SECONDS status=0 part
  shift 2
  [ "$limit" -le $((seconds - SECONDS)) ] || limit=$((seconds - SECONDS))
  if [ "$limit" -lt 15 ]; then
    printf '%-34s %s\n' "$name" "LEFT OUT: no time" | tee -a "$log"
    failed=1
    return
  fi
  part=$(mktemp)
  timeout "$limit" "$@" >"$part" 2>&1 || status=$?
  local verdict=passed
  [ "$status" = 0 ] || { verdict="FAILED ($status; 124 is its limit of $limit s)"; failed=1; }
  { echo "=== $name"; cat "$part"; } >>"$log"
  printf '%-34s %-10s %4d s   %s\n' "$name" "$verdict" $((SECONDS - start)) \
    "$(grep -E '[0-9]+ (passed|failed)|ERROR SUMMARY' "$part" | tail -1)" | tee -a "$log"
  rm "$part"
}
suite() { "$python" -m pytest -q -p no:cacheprovider "$@"; }
export -f suite

{
  echo "$0 $*"
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
  "$python" -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda)'
  nvcc --version | tail -2 | head -1
} | tee -a "$log"

# A second tree, whose extension has no CUDA part, built meanwhile.
if "$python" -c 'import cupy' 2>/dev/null; then
  copy=$(mktemp -d)
  trap 'rm -rf "$copy"' EXIT
  tar -c --exclude=./build --exclude=./.git --exclude='*.so' . | tar -x -C "$copy"
  (cd "$copy" && AGF_CUDA=OFF timeout 240 "$python" setup.py build_ext --inplace) \
    >"$results/gpu-nvrtc.log" 2>&1 &
  other=$!
fi
AGF_CUDA=ON step 240 "build" "$python" setup.py build_ext --inplace
step 20 "info" "$python" -m autoguide_fast.cli info
step 120 "CUDA tests" bash -c 'suite tests/test_ops.py tests/test_ops_numerics.py \
  tests/test_runtime_kernels.py tests/test_sample.py tests/test_cuda_engine.py \
  -k "(cuda or cupy or device or stream or captured or first_call) and not opcheck"'
# The trainer is part of the package only where that is installed.
step 40 "CUDA tests of the trainer" "$python" -c 'import os, sys, pytest, autoguide_fast
autoguide_fast.__path__.append(os.getcwd())
sys.exit(pytest.main(sys.argv[1:]))' -q -p no:cacheprovider tests/test_trainer_capture.py -k gpu

left=$((seconds - SECONDS - 190))  # for what follows
races=$((left < 230 ? left : 230))
step "$races" "races of whole samplings" "$python" benchmarks/gpu_nets.py "$results" \
  --seconds $((races - 5)) ${reference:+"$reference"}
step 50 "races of the operators" "$python" benchmarks/gpu_ops.py "$results" 40

sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
if [ -n "$sanitizer" ]; then
  # Without torch's cache of memory, each tensor is an allocation whose ends are watched. Errors of
  # calls, by which libraries ask what a device can do, are not looked for.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  export sanitize="$sanitizer --report-api-errors no --error-exitcode 9 --tool"
  step 60 "memcheck" bash -c '$sanitize memcheck "$python" -m pytest -q -p no:cacheprovider \
    tests/test_ops.py -k "cuda and torch.float16 and not sliced and (test_value or test_gradient)"'
  for tool in racecheck synccheck; do
    step 30 "$tool" bash -c '$sanitize '"$tool"' "$python" -m pytest -q -p no:cacheprovider \
      tests/test_ops.py -k "cuda and torch.float16 and test_gradient"'
  done
  unset PYTORCH_NO_CUDA_MEMORY_CACHING
else
  echo "compute-sanitizer: not on this machine, not run" | tee -a "$log"
fi

if [ -n "${other:-}" ]; then
  if ! wait "$other"; then
    echo "build without CUDA: FAILED, see gpu-nvrtc.log" | tee -a "$log"
    failed=1
  fi
  cd "$copy" || exit 1
  export PYTHONPATH="$copy"
  step 60 "CUDA tests through CuPy and NVRTC" bash -c '"$python" -c "
from autoguide_fast import runtime_kernels
assert \"NVRTC\" in runtime_kernels.route(), runtime_kernels.route()" &&
    suite tests/test_ops.py tests/test_runtime_kernels.py -k "cuda and torch.float16 and \
    not sliced and (test_value or test_gradient) or captured or stream or first_call"'
else
  echo "CuPy: not on this machine, the kernels were not compiled at first use" | tee -a "$log"
fi
exit "$failed"
