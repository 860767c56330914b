#!/usr/bin/env bash
# Everything that a machine with a GPU can tell, in one command: benchmarks/gpu/run_all.sh FOLDER
#
# Needs torch, pytest and a built fused_rnn/_C.so. `benchmarks/gpu/run_all.sh --help` names the parts, and the variables
# of the environment that choose among them. PYTHON (python3) is the interpreter.
set -euo pipefail

start=$PWD
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
if ! "$python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)'; then
  echo "error: $python has no torch: set PYTHON to an interpreter that has it" >&2
  exit 2
fi
exec "$python" -u -m benchmarks.gpu.kit --from "$start" "$@"
