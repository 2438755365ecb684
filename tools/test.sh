#!/usr/bin/env bash
# Make .venv, install the dev extra, then run ruff, mypy and pytest. Arguments go to pytest.
set -eu
cd "$(dirname "$0")/.."
bash .ci/check.sh
. tools/venv.sh dev
python -m pytest "$@"
