#!/usr/bin/env bash
# From the shipped checkpoint to images: install, then export, verify and draw out/demo.png.
set -eu
cd "$(dirname "$0")/.."
. tools/venv.sh demo
ldmrt export model/pretrained/emoji64 out/emoji64  # reuses what has not changed
ldmrt demo --bundle out/emoji64 --out out/demo.png --overwrite
