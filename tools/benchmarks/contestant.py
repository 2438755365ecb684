"""One way to draw an image, in a process of its own, which `tools/benchmarks/compare.py` tells when to draw.

    python -c "$(cat tools/benchmarks/contestant.py)" diffusers CHECKPOINT '{"prompt": ..., "noise": "noise.npy", ...}'

Written so that a Python without ldmrt can run it, such as one that has optimum. It prints a line of JSON when it is
ready and one after each image that a line on its standard input asks for; an empty line ends it.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Draw = Callable[[str], Any]  # of a prompt, an image (H, W, 3), uint8


def ldmrt(path: str, ask: dict[str, Any]) -> Draw:
    """This project's runtime."""
    from ldmrt.runtime.pipeline.pipeline import open_pipeline
    from ldmrt.runtime.pipeline.request.fields import from_short

    pipeline = open_pipeline(path, **ask.get("options", {}))
    noise = np.load(ask["noise"])
    asked = from_short({name: ask[name] for name in ("width", "height", "steps", "guidance")})
    return lambda prompt: pipeline(prompt, latents=noise, **asked).pixels[0]


def diffusers(path: str, ask: dict[str, Any], compiled: bool = False) -> Draw:
    """diffusers on torch eager."""
    import torch
    from diffusers import DiffusionPipeline

    torch.set_num_threads(ask["threads"])
    pipeline = DiffusionPipeline.from_pretrained(path, torch_dtype=torch.float32, safety_checker=None)
    if compiled:
        pipeline.unet = torch.compile(pipeline.unet)
    return _theirs(pipeline, ask)


def torch_compile(path: str, ask: dict[str, Any]) -> Draw:
    """diffusers with its U-Net compiled."""
    return diffusers(path, ask, compiled=True)


def optimum(path: str, ask: dict[str, Any]) -> Draw:
    """optimum's pipeline on ONNX Runtime."""
    import onnxruntime
    from optimum.onnxruntime import ORTDiffusionPipeline

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = ask["threads"]
    return _theirs(ORTDiffusionPipeline.from_pretrained(path, session_options=options), ask)


def _theirs(pipeline: Any, ask: dict[str, Any]) -> Draw:
    import torch

    pipeline.set_progress_bar_config(disable=True)
    noise = torch.from_numpy(np.load(ask["noise"]))

    def draw(prompt: str) -> Any:
        images = pipeline(
            prompt, num_inference_steps=ask["steps"], guidance_scale=ask["guidance"], width=ask["width"],
            height=ask["height"], latents=noise.clone(), output_type="np",
        ).images  # fmt: skip
        return np.rint(images[0] * 255).astype(np.uint8)

    return draw


KINDS = {"ldmrt": ldmrt, "diffusers": diffusers, "torch.compile": torch_compile, "optimum": optimum}


def main() -> None:
    """Open, then draw whenever asked: each time another prompt, as people do."""
    begin = time.perf_counter()
    kind, path, asked = sys.argv[1:4]
    ask = json.loads(asked)
    draw = KINDS[kind](path, ask)
    answer(ready=time.perf_counter() - begin)
    for number, line in enumerate(sys.stdin):
        if not line.strip():
            break
        begin = time.perf_counter()
        picture = draw(f"{ask['prompt']} {number}")
        took = time.perf_counter() - begin
        np.save(line.strip(), picture)
        kilobyte = 1 if sys.platform == "darwin" else 1024
        answer(seconds=took, peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobyte)


def answer(**said: float) -> None:
    """A line for whoever asked."""
    print("ANSWER " + json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
