#!/usr/bin/env bash
# From the shipped checkpoint to pictures: install, export, verify, generate out/demo.png.
set -eu
cd "$(dirname "$0")/.."
. tools/venv.sh demo
ldmrt export model/pretrained/emoji64 out/emoji64
ldmrt verify out/emoji64 --against model/pretrained/emoji64
ldmrt generate out/emoji64 --seed 1 --columns 4 --out out/demo.png \
  "a red apple, noto style, blue background" \
  "a penguin, noto style, yellow background" \
  "a hamburger, noto style, cyan background" \
  "a sunflower, noto style, purple background" \
  "a fox, noto style, green background" \
  "a doughnut, noto style, white background" \
  "an octopus, noto style, black background" \
  "a cactus, noto style, pink background"
