#!/usr/bin/env bash
# From the shipped checkpoint to pictures: install, export, verify, generate out/demo.png.
set -eu
cd "$(dirname "$0")/.."
. tools/venv.sh demo

pairs=(
  "a red apple:blue" "a penguin:yellow" "a hamburger:cyan" "a sunflower:purple"
  "a fox:green" "a doughnut:white" "an octopus:black" "a cactus:pink"
  "a butterfly:gray" "an avocado:red" "a panda:orange" "a watermelon:brown"
  "a tropical fish:white" "a birthday cake:green" "a frog:pink" "a pizza:blue"
  "a rooster:cyan" "a lobster:yellow" "a mushroom:black" "a koala:purple"
  "a strawberry:gray" "an owl:red" "an ice cream:orange" "a tulip:blue"
)
prompts=()
for pair in "${pairs[@]}"; do prompts+=("${pair%:*}, noto style, ${pair#*:} background"); done

ldmrt export model/pretrained/emoji64 out/emoji64
ldmrt verify out/emoji64 --against model/pretrained/emoji64
ldmrt generate out/emoji64 "${prompts[@]}" --seed 1 --guidance 2 --columns 8 --overwrite --out out/demo/each.png > /dev/null
mv out/demo/each.png out/demo.png
echo "the pictures: out/demo.png, and one by one out/demo/each-00.png ..."
