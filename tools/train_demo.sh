#!/usr/bin/env bash
# Train a model as emoji64 from nothing: its images, an autoencoder with an adversarial loss, then the network on text.
# Usage: bash tools/train_demo.sh [FOLDER]; FOLDER (runs/demo) then has emoji64. A run that was stopped goes on.
set -eu
cd "$(dirname "$0")/.."
command -v ldmrt > /dev/null || . tools/venv.sh dev
out=${1:-runs/demo}
images="--data data/emoji --style noto --group animals-nature --group food-drink"
resume() {  # if the run in a folder has saved a state
  for state in "$1"/training/states/*-* "$1"/training/state.pt; do
    if [ -e "$state" ]; then echo --resume; return; fi
  done
}
[ -e data/emoji/sprites.npz ] || ldmrt data emoji data/emoji
ldmrt train autoencoder $images --steps 10000 --batch 8 --learning-rate 1e-3 --reconstruction l1 \
  --perceptual discriminator --perceptual-weight 0.1 --adversarial 0.1 --discriminator-start 7000 \
  --out "$out/autoencoder" $(resume "$out/autoencoder")
ldmrt train ldm $images --autoencoder "$out/autoencoder" --steps 6000 --batch 32 --learning-rate 8e-4 \
  --prediction v_prediction --out "$out/ldm" $(resume "$out/ldm")
python -m ldmrt.tools.emoji.ship "$out/ldm" "$out/emoji64"
