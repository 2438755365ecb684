#!/usr/bin/env bash
# What this machine's GPU makes of the project: one table, and JSON under $OUT or tools/benchmarks/results. Installs nothing.
# Options are those of `python -m ldmrt.tools.benchmarks.gpu_check --help`; PYTHON names the Python, if it is not python3.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-$(command -v python3 || command -v python)}
if ! "$python" -c "import ldmrt.tools.benchmarks" 2> /dev/null; then
  # not installed: the folders under their common name are all that it takes
  place=$(mktemp -d)
  trap 'rm -rf "$place"' EXIT
  mkdir "$place/ldmrt"
  ln -s "$PWD/about/__init__.py" "$place/ldmrt/"
  for folder in model export runtime serve tools; do ln -s "$PWD/$folder" "$place/ldmrt/$folder"; done
  export PYTHONPATH="$place${PYTHONPATH:+:$PYTHONPATH}"
fi
"$python" -m ldmrt.tools.benchmarks.gpu_check "$@"
