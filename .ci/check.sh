#!/usr/bin/env bash
# Make .venv, install the dev extra, then run ruff and mypy.
set -eu
cd "$(dirname "$0")/.."
. tools/venv.sh dev
ruff check --quiet .
ruff format --check --quiet .
# mypy cannot follow the finder of an editable install, so it reads an installed copy
rm -rf build/typecheck build/lib  # the latter may hold files that are gone
python -m pip install --quiet --no-deps --target build/typecheck .
cp -r tools/benchmarks build/typecheck/ldmrt/tools/  # which the package leaves out
MYPYPATH=build/typecheck mypy --no-error-summary -p ldmrt
