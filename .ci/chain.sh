#!/usr/bin/env bash
# One chain on a CPU within five minutes, from nothing: draw images, train a tiny model on them, export, verify, generate.
# Usage: bash .ci/chain.sh [FOLDER]; FOLDER (build/chain) is made anew.
set -eu
cd "$(dirname "$0")/.."
command -v ldmrt > /dev/null || . tools/venv.sh dev
out=${1:-build/chain}
rm -rf "$out"
mkdir -p "$out/images"
python - "$out/images" << 'PYTHON'
import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw

folder, rows = Path(sys.argv[1]), []
for color in ("red", "green", "blue", "orange"):
    for shape in ("circle", "square"):
        for background in ("white", "black"):
            image = Image.new("RGB", (32, 32), background)
            draw = ImageDraw.Draw(image)
            (draw.ellipse if shape == "circle" else draw.rectangle)((6, 6, 25, 25), fill=color)
            rows.append({"file_name": f"{color}-{shape}-{background}.png", "text": f"a {color} {shape} on {background}"})
            image.save(folder / rows[-1]["file_name"])
(folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
PYTHON
few="--data $out/images --size 32 --warmup 2"
ldmrt train autoencoder $few --steps 12 --batch 4 --out "$out/ae"
ldmrt train ldm $few --steps 12 --batch 4 --vocabulary 600 --autoencoder "$out/ae" --out "$out/ldm"
ldmrt export "$out/ldm" "$out/bundle"
ldmrt verify "$out/bundle"
ldmrt generate "$out/bundle" "a red circle on white" --steps 10 --seed 1 -o "$out/image.png"
echo "the chain holds: $out/image.png"
