"""Run `ldmrt export`: turn a checkpoint into a bundle with a certificate."""

import time
from dataclasses import replace
from pathlib import Path

import click

from ldmrt.tools.console.outputs import Output
from ldmrt.tools.options.checkpoint import CheckpointOptions, checkpoint_options
from ldmrt.tools.options.common import LOW_MEMORY


@click.command()
@click.argument("checkpoint")
@click.argument("bundle", type=Output(folder=True))
@checkpoint_options
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    metavar="fp32|fp16|bf16|COMPONENT=fp16,...",
    help="Precision of all networks, or by name; modules that overflow or are inaccurate stay in fp32.",
)
@click.option(
    "--fp32-decoder", is_flag=True, help="Also export the decoder in fp32, for `ldmrt generate --on-overflow retry`."
)
@click.option("--deep-cache", is_flag=True, help="Also export the graphs that `ldmrt generate --deep-cache` runs.")
@click.option("--components", "only", help="Components to export, such as unet,vae_decoder; others are kept.")
@click.option("--stage", help="Export as a later stage of this name of BUNDLE, a bundle whose images it enlarges.")
@click.option("--verify/--no-verify", default=True, help="Whether to verify the bundle and store the certificate.")
@LOW_MEMORY
def export(
    source: CheckpointOptions,
    bundle: Path,
    precision: str,
    fp32_decoder: bool,
    deep_cache: bool,
    only: str | None,
    stage: str | None,
    verify: bool,
    low_memory: bool,
) -> None:
    """Turn CHECKPOINT into BUNDLE, a folder of ONNX files with a manifest.

    CHECKPOINT is a folder in diffusers' layout, a single .safetensors or .ckpt file, or a model of the Hugging Face
    hub, OWNER/NAME; or the file of an upscale model such as ESRGAN's, .pth or .safetensors, for `ldmrt upscale`.

    Components that have not changed since the last export to BUNDLE are reused. BUNDLE changes only after the last
    component. Then it is verified, as by `ldmrt verify BUNDLE --against CHECKPOINT --store`; exit code 1 if a
    difference exceeds its tolerance.

    Example: ldmrt export model/pretrained/emoji64 out/emoji64
    """
    from ldmrt.tools.console.verification.upscale_model import export_file, is_upscale_file

    if source.checkpoint is not None and is_upscale_file(Path(source.checkpoint)):
        export_file(Path(source.checkpoint), bundle, precision, verify=verify)
        return
    from ldmrt.export.bundle_writer import export_bundle
    from ldmrt.export.cascade import add_stage, check_stage
    from ldmrt.export.components.table import components
    from ldmrt.export.precision.policy import choose_precisions, parse
    from ldmrt.runtime.bundle.bundle import Bundle
    from ldmrt.runtime.bundle.graphs import DECODER_FP32
    from ldmrt.runtime.files.recognise import BUNDLE, refuse_other
    from ldmrt.runtime.optional import check_installed
    from ldmrt.runtime.pipeline.request.stages import check_order
    from ldmrt.tools.console.progress import console, telling
    from ldmrt.tools.console.verification.measure import certify_new
    from ldmrt.tools.console.words import listed, own_words

    refuse_other("export", bundle, BUNDLE)  # before minutes of work
    cascade = bundle
    if stage is not None:
        check_stage(cascade, stage)
        bundle = cascade / stage
    check_installed("export", "onnx", "onnx_ir", "onnxscript", *(["onnxruntime"] if verify else []))
    begin, precisions = time.perf_counter(), parse(precision) | ({DECODER_FP32: "fp32"} if fp32_decoder else {})
    with telling("reading the checkpoint") as tell:
        loaded, merged, islands = choose_precisions(source.load, precisions, late=True, tell=tell)
    if set(precisions.values()) != {"fp32"}:
        console.print(f"precisions: measured in {time.perf_counter() - begin:.1f} s", highlight=False)
        begin = time.perf_counter()
    if stage is not None:
        check_order(replace(loaded.stage, name=stage))
    for name, modules in islands.items():
        for module, why in modules.items():
            console.print(f"{name}: {module or 'the whole network'} computes in fp32: {why}", highlight=False)
    for entry in merged.get("embeddings", []):
        console.print(f"{entry['file']}: use {' or '.join(entry['words'])} in prompts", markup=False, highlight=False)
    if words := own_words(loaded.tokenizers, merged.get("embeddings", [])):
        console.print(f"words of the checkpoint: {listed(words)}", markup=False, highlight=False)
    with console.status("exporting") as status:
        chosen = [name.strip() for name in only.split(",")] if only else []
        components_done = export_bundle(
            loaded, bundle, only=chosen, merged=merged, islands=islands, deep_cache=deep_cache
        )
        for done in components_done:
            seconds, begin = time.perf_counter() - begin, time.perf_counter()
            how = "reused: weights, config and versions are the same" if done.reused else f"exported in {seconds:.1f} s"
            console.print(f"{done.component}: {how}", highlight=False)
            status.update("exporting")
    if stage is not None:
        add_stage(cascade, stage)
    click.echo(bundle)
    names = list(components(loaded))
    del loaded  # verifying reads it again, so that memory never holds the networks of both sides
    if not verify:
        return
    if missing := [name for name in names if not (bundle / name / "model.onnx").is_file()]:
        console.print(f"not verified: {', '.join(missing)} are not exported yet", highlight=False)
        return
    opened = Bundle.open(bundle, check=False)
    if opened.certificate_issues or opened.uncovered:
        certify_new(opened, source, low_memory=low_memory)
