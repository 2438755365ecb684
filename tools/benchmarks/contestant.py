"""Make images with one program, in its own process, whenever `tools/benchmarks/compare.py` asks for one.

    python -c "$(cat tools/benchmarks/contestant.py)" diffusers CHECKPOINT '{"prompt": ..., "noise": "noise.npy", ...}'

Written so that a Python without ldmrt can run it, such as one that has optimum or OpenVINO GenAI. It prints a line of
JSON when it is ready and one after each image that a line on its standard input asks for; an empty line ends it.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

Image = NDArray[Any]  # (H, W, 3), grey levels from 0 to 255: integers, or floats that are not rounded yet
Draw = Callable[[str], Image]  # makes an image of a prompt


class Ask(TypedDict, total=False):
    """The image that all contestants make, and how."""

    prompt: str
    width: int
    height: int
    steps: int
    guidance: float
    threads: int
    noise: str  # an .npy file of the first latents
    options: dict[str, Any]  # of what opens the model: `open_pipeline`, OpenVINO


def arguments(ask: Ask) -> dict[str, Any]:
    """Return the arguments of the image, which have one name in all programs."""
    sides = {"width": ask["width"], "height": ask["height"]}
    return {"num_inference_steps": ask["steps"], "guidance_scale": ask["guidance"], **sides}


def ldmrt(path: str, ask: Ask) -> Draw:
    """Open a bundle with ldmrt's runtime."""
    from ldmrt.runtime.pipeline.opening import open_pipeline

    pipeline = open_pipeline(path, **ask.get("options", {}))
    noise = np.load(ask["noise"])

    def draw(prompt: str) -> Image:
        return pipeline(prompt, **arguments(ask), latents=noise).pixels[0]

    return draw


def diffusers(path: str, ask: Ask, compiled: bool = False) -> Draw:
    """Open a checkpoint with diffusers, with torch in eager mode or a compiled U-Net."""
    import torch
    from diffusers import DiffusionPipeline

    torch.set_num_threads(ask["threads"])
    pipeline = DiffusionPipeline.from_pretrained(path, torch_dtype=torch.float32, safety_checker=None)
    if compiled:
        pipeline.unet = torch.compile(pipeline.unet)
    return _theirs(pipeline, ask)


def torch_compile(path: str, ask: Ask) -> Draw:
    """Open a checkpoint with diffusers and compile its U-Net."""
    return diffusers(path, ask, compiled=True)


def optimum(path: str, ask: Ask) -> Draw:
    """Open ONNX files with optimum's pipeline on ONNX Runtime."""
    import onnxruntime
    from optimum.onnxruntime import ORTDiffusionPipeline

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = ask["threads"]
    return _theirs(ORTDiffusionPipeline.from_pretrained(path, session_options=options), ask)


def optimum_intel(path: str, ask: Ask) -> Draw:
    """Open a model that optimum-intel exported with its pipeline on OpenVINO."""
    from optimum.intel import OVDiffusionPipeline

    return _theirs(OVDiffusionPipeline.from_pretrained(path, export=False, ov_config=ask["options"]), ask)


def genai(path: str, ask: Ask) -> Draw:
    """Open a model that optimum-intel exported with OpenVINO GenAI, and let its generator return the latents."""
    import openvino
    import openvino_genai

    class Latents(openvino_genai.Generator):
        """Returns the first latents in place of random numbers."""

        def randn_tensor(self, shape: Any) -> Any:
            """Return the latents (1, C, h, w), whose size is `shape`."""
            return openvino.Tensor(noise.reshape(list(shape)))

    pipeline = openvino_genai.Text2ImagePipeline(path, "CPU", **ask["options"])
    noise = np.load(ask["noise"])

    def draw(prompt: str) -> Image:
        return np.array(pipeline.generate(prompt, **arguments(ask), generator=Latents()).data[0])

    return draw


def _theirs(pipeline: Any, ask: Ask) -> Draw:
    import torch

    pipeline.set_progress_bar_config(disable=True)
    noise = torch.from_numpy(np.load(ask["noise"]))
    if hasattr(pipeline, "_pack_latents"):  # FLUX.1's takes them as tokens
        noise = pipeline._pack_latents(noise, *noise.shape)

    def draw(prompt: str) -> Image:
        images = pipeline(prompt, **arguments(ask), latents=noise.clone(), output_type="np").images
        return np.asarray(images[0] * 255)

    return draw


KINDS = {
    "ldmrt": ldmrt,
    "diffusers": diffusers,
    "torch.compile": torch_compile,
    "optimum": optimum,
    "optimum-intel": optimum_intel,
    "GenAI": genai,
}


def main() -> None:
    """Open the model, then make an image of another prompt for each line on the standard input."""
    begin = time.perf_counter()
    kind, path, text = sys.argv[1:4]
    ask: Ask = json.loads(text)
    draw = KINDS[kind](path, ask)
    answer(ready=time.perf_counter() - begin)
    for number, line in enumerate(sys.stdin):
        if not line.strip():
            break
        begin = time.perf_counter()
        image = draw(f"{ask['prompt']} {number}")
        took = time.perf_counter() - begin
        np.save(line.strip(), image)
        kilobyte = 1 if sys.platform == "darwin" else 1024
        answer(seconds=took, peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobyte)


def answer(**values: float) -> None:
    """Print a line of JSON for the process that asked; whatever a library has printed, the line begins there."""
    print("\nANSWER " + json.dumps(values), flush=True)


if __name__ == "__main__":
    main()
