#!/usr/bin/env bash
# Everything that a machine with a GPU can tell, in one command: benchmarks/gpu/run_all.sh FOLDER
#
# Needs torch, pytest and a built fused_rnn/_C.so. `benchmarks/gpu/run_all.sh --help` names the parts, and the variables
# of the environment that choose among them. PYTHON (python3) is the interpreter.
set -euo pipefail

start=$PWD
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python3}" -u -m benchmarks.gpu.kit --from "$start" "$@"
