#!/usr/bin/env bash
# Everything that a machine with a GPU can tell, in one command: benchmarks/gpu/run_all.sh FOLDER
#
# Runs the tests marked gpu, the micro-measurements and the benchmarks, each with its own limit; results and whole logs
# go to FOLDER. A part that fails or runs out of time does not keep the next from running; the exit status is then 1.
# It needs torch and a built fused_rnn/_C.so, and for the micro-measurements nvcc, or build/micro made elsewhere.
# Environment: PYTHON (python3), TEST_SECONDS (120), MICRO_SECONDS (45), BENCH_MINUTES (5, a whole number): in all
# under ten minutes even where every part runs into its limit. PARTS ("tests micro benchmarks") are what is run; one
# more, scaling, takes up to ten minutes by itself: SCALING_MINUTES (8, a whole number), and what is then begun.
set -uo pipefail

if [ $# -ne 1 ]; then
  echo "usage: $0 FOLDER" >&2
  exit 2
fi
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/../.." || exit 2

python=${PYTHON:-python3}
minutes=${BENCH_MINUTES:-5}
export PYTHONUNBUFFERED=1
status=0

# part NAME SECONDS COMMAND...: run it, keep what it says, and remember if it failed.
part() {
  local name=$1 seconds=$2 code
  shift 2
  echo "== $name: $*"
  timeout --kill-after=10 "$seconds" "$@" 2>&1 | tee "$out/$name.log"
  code=${PIPESTATUS[0]}
  echo "$name: exit status $code" | tee -a "$out/status.txt"
  if [ "$code" -ne 0 ]; then status=1; fi
}

: > "$out/status.txt"
for name in ${PARTS:-tests micro benchmarks}; do
  case $name in
    tests) part tests "${TEST_SECONDS:-120}" "$python" -m pytest -m gpu ;;
    micro) # 45 s more to compile the program
      part micro "$((${MICRO_SECONDS:-45} + 45))" "$python" -m benchmarks.gpu.micro --seconds "${MICRO_SECONDS:-45}" \
        --out "$out/micro.json" ;;
    benchmarks) # the limit beyond --minutes is for a point that takes longer than was told
      part benchmarks "$((minutes * 60 + 60))" "$python" -m benchmarks.gpu --minutes "$minutes" --out "$out/gpu.json" ;;
    scaling)
      part scaling "$((${SCALING_MINUTES:-8} * 60 + 120))" "$python" -m benchmarks.scaling --device cuda \
        --dtype bfloat16 --minutes "${SCALING_MINUTES:-8}" --out "$out/scaling.json" ;;
    *) echo "PARTS names $name, and must be of tests, micro, benchmarks, scaling" >&2; status=2 ;;
  esac
done
cat "$out/status.txt"
exit "$status"
