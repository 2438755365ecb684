#!/usr/bin/env bash
# From the shipped checkpoints to images: install, then export, verify, draw and enlarge; out/demo.png has all.
set -eu
cd "$(dirname "$0")/.."
. tools/venv.sh demo
ldmrt export model/pretrained/emoji64 out/emoji128  # reuses what has not changed
ldmrt export model/pretrained/emoji128-upscaler out/emoji128 --stage upscale
ldmrt demo --bundle out/emoji128 --out out/demo.png --overwrite
