#!/usr/bin/env bash
# Bundles in optimum's ORT pipelines, and what optimum exports in ldmrt: every family, drawn by both sides and compared.
# Arguments are the families, such as sdxl; all where none is named.
# LDMRT_PYTHON and OPTIMUM_PYTHON, if set, are used in place of .venv and build/optimum/venv, which else are made.
set -eu
cd "$(dirname "$0")/../.."
place=build/optimum
work=$place/work

if [ -z "${LDMRT_PYTHON:-}" ]; then
  . tools/venv.sh dev
  LDMRT_PYTHON=.venv/bin/python
fi
if [ -z "${OPTIMUM_PYTHON:-}" ]; then
  # a venv of its own: optimum asks for older releases of transformers and diffusers
  OPTIMUM_PYTHON=$place/venv/bin/python
  [ -x "$OPTIMUM_PYTHON" ] || "$LDMRT_PYTHON" -m venv "$place/venv"
  stamp=$place/venv/.installed
  wanted=$(cksum < tests/interop/optimum-constraints.txt)
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "installing optimum into $place/venv"
    pip=("$OPTIMUM_PYTHON" -m pip install --quiet --disable-pip-version-check -c tests/interop/optimum-constraints.txt)
    "${pip[@]}" torch  # first, as in tools/venv.sh
    "${pip[@]}" optimum-onnx diffusers onnxruntime
    echo "$wanted" > "$stamp"
  fi
fi

run() {
  echo "$1"
  "${@:2}" > "$work/log.txt" 2>&1 || { tail -n 30 "$work/log.txt"; exit 1; }
}
rm -rf "$work"
mkdir -p "$work"
export HF_HUB_OFFLINE=1  # everything is made here
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # more only slow down networks this small
run "ldmrt makes checkpoints, exports and draws them" "$LDMRT_PYTHON" -m tests.interop.make "$work" "$@"
run "optimum exports and draws them" "$OPTIMUM_PYTHON" -m tests.interop.theirs "$work" "$@"
"$LDMRT_PYTHON" -m tests.interop.compare "$work" "$@"
