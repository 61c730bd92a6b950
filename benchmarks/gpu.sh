#!/usr/bin/env bash
# Everything that takes a GPU, in one command and within nine minutes: builds with nvcc, runs the
# CUDA tests, races whole samplings and the operators, runs the operators under compute-sanitizer,
# and does the same through NVRTC where CuPy is there. Needs an NVIDIA GPU, a CUDA toolkit, and a
# Python with a CUDA build of torch, pytest and what pyproject.toml asks for; no network.
# Usage: benchmarks/gpu.sh [FOLDER [REFERENCE]]
#   FOLDER     where results go: benchmarks/results/ unless given
#   REFERENCE  a checkout of the EDM2 reference implementation, to be raced too
set -uo pipefail
reference=${2:+--reference=$(realpath "$2")}
cd "$(dirname "$0")/.."
results=${1:-benchmarks/results}
seconds=530  # of everything; what comes last is left out first
python=${PYTHON:-python3}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
mkdir -p "$results"
log="$results/gpu.log"
: >"$log"
failed=0

# step SECONDS NAME COMMAND...: runs it with a limit, and says how it went.
step() {
  local limit=$1 name=$2 start=$SECONDS status=0
  shift 2
  [ "$limit" -le $((seconds - SECONDS)) ] || limit=$((seconds - SECONDS))
  if [ "$limit" -lt 15 ]; then
    printf '%-44s %s\n' "$name" "left out: no time" | tee -a "$log"
    return
  fi
  printf '=== %s\n' "$name" >>"$log"
  timeout "$limit" "$@" >>"$log" 2>&1 || status=$?
  local verdict=passed
  [ "$status" = 0 ] || { verdict="FAILED ($status; 124 is its limit of $limit s)"; failed=1; }
  printf '%-44s %-12s %4d s   %s\n' "$name" "$verdict" $((SECONDS - start)) \
    "$(grep -E '^[0-9]+ (passed|failed)|passed in|ERROR SUMMARY' "$log" | tail -1)"
}
suite() { "$python" -m pytest -q -p no:cacheprovider "$@"; }
export -f suite
export python

"$python" -c 'import torch; assert torch.cuda.is_available(), "torch sees no CUDA device"' || exit 1
{
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
  "$python" -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda)'
  nvcc --version | tail -2 | head -1
} | tee -a "$log"

AGF_CUDA=ON step 240 "build" "$python" setup.py build_ext --inplace
step 20 "info" "$python" -m autoguide_fast.cli info
step 150 "CUDA tests" bash -c 'suite tests/test_ops.py tests/test_ops_numerics.py \
  tests/test_runtime_kernels.py tests/test_sample.py tests/test_cuda_engine.py \
  -k "cuda or device or stream or captured"'
step 230 "races of whole samplings" "$python" benchmarks/gpu_nets.py "$results" --seconds 225 \
  ${reference:+"$reference"}
step 60 "races of the operators" "$python" benchmarks/gpu_ops.py "$results"

sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
if [ -n "$sanitizer" ]; then
  # Without torch's cache of memory, each tensor is an allocation whose ends are watched.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1 sanitizer
  step 90 "memcheck" bash -c '"$sanitizer" --tool memcheck --error-exitcode 9 "$python" -m pytest \
    -q -p no:cacheprovider tests/test_ops.py -k "cuda and torch.float16 and not sliced and \
    (test_value or test_gradient)"'
  for tool in racecheck synccheck; do
    step 60 "$tool" bash -c '"$sanitizer" --tool '"$tool"' --error-exitcode 9 "$python" -m pytest \
      -q -p no:cacheprovider tests/test_ops.py -k "cuda and torch.float16 and contiguous and \
      test_gradient"'
  done
  unset PYTORCH_NO_CUDA_MEMORY_CACHING
else
  echo "compute-sanitizer: not on this machine, not run" | tee -a "$log"
fi

if "$python" -c 'import cupy' 2>/dev/null; then
  copy=$(mktemp -d)
  trap 'rm -rf "$copy"' EXIT
  cp -r . "$copy/tree" && rm -rf "$copy/tree/build" "$copy"/tree/autoguide_fast/_C*.so
  cd "$copy/tree" || exit 1
  log=$(realpath -m "$OLDPWD/$log") PYTHONPATH="$copy/tree"
  AGF_CUDA=OFF step 120 "build without nvcc" "$python" setup.py build_ext --inplace
  step 90 "CUDA tests through CuPy" bash -c 'suite tests/test_ops.py \
    -k "cuda and torch.float16 and not sliced and (test_value or test_gradient)"'
else
  echo "CuPy: not on this machine, the kernels were not compiled at first use" | tee -a "$log"
fi
exit "$failed"
