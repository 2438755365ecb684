"""Describe how images are made as data: which networks run, in which space, and where each of their inputs comes from.

A manifest holds a list of stages, so the pipeline knows no family of models. One without, and a folder that optimum
exported, are read as the one stage that their configs describe.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ldmrt.runtime.errors import BundleError
from ldmrt.runtime.files.reading import JsonObject

from .configs import positive, sides_of, truth, whole
from .graphs import DECODER

Setting = bool | int | float | str
SAMPLE, TIMESTEP = "sample", "timestep"  # inputs of every network that denoises
PROMPT, POOLED, CLASSES = "encoder_hidden_states", "text_embeds", "class_labels"
PLAIN = "UNet2DModel"  # diffusers' U-Net that reads no prompt
# Where an input, or some channels of it, may come from: the settings of each kind, by their types.
KINDS: Mapping[str, Mapping[str, type]] = {
    "state": {},
    "timestep": {},
    "prompt": {"penultimate": bool, "zeros": bool},  # the layer that is taken; whether no negative prompt is zeros
    "pooled_prompt": {},
    "sizes": {"scored": bool},  # of SDXL; whether they end with an aesthetic score
    "guidance_scale": {},  # embedded, for a distilled network
    "class": {"count": int, "null": bool},  # whether the last one is none, which rows without a class are given
    "noise_level": {"most": int},  # that was added to the image
    "mask": {},
    "masked_image": {},  # its latents
    "image_latents": {},  # the autoencoder's mean, not scaled
    "small_image": {},  # as small as the latents
    "noised_image": {"scheduler": str},  # the same, with noise that the scheduler in this folder adds
    "enlarged_image": {"scheduler": str, "times": int},  # a small image enlarged so often, then with noise
}
NOISED_KINDS = ("noised_image", "enlarged_image")  # they are given noise of a level that the network is told
SMALL_KINDS = ("small_image", *NOISED_KINDS)  # images in colours, whose enlargement is drawn
IMAGE_KINDS = ("image_latents", *SMALL_KINDS)  # they are given the image, which is then no start for the latents
MASK_KINDS = ("mask", "masked_image")
PROMPTS = ("negative", "positive")
SCALES = ("guidance_scale", "image_guidance_scale")  # fields of a request
BASE = "base"  # the name of a model's first stage
MOST = 16  # stages, rows of guidance, or sources of an input
KL, VQ, TINY, PIXELS = "kl", "vq", "tiny", "none"
# An autoencoder that gives Gaussians, one with a codebook, a tiny one that gives latents, and none.
CODECS = (KL, VQ, TINY, PIXELS)
CODEC_OF = {"VQModel": VQ, "AutoencoderTiny": TINY}  # by the class in diffusers; any other is KL


@dataclass(frozen=True)
class Source:
    """Names where an input of a network comes from, or some of its channels."""

    kind: str  # one of `KINDS`
    settings: Mapping[str, Setting] = field(default_factory=dict)

    def setting(self, name: str) -> Setting:
        """Return a setting; false, 0 or "" where it is absent."""
        return self.settings.get(name, KINDS[self.kind][name]())


@dataclass(frozen=True)
class Space:
    """The space that a sampler moves in: latents of an autoencoder, or the pixels of images.

    Attributes:
        channels: Channels of the latents, or of the images.
        factor: Pixels of the image per latent, along one side; 1 without an autoencoder.
        scaling_factor: The network sees the autoencoder's latents times this.
        codec: One of `CODECS`: what makes images of latents.
        least: The value of a black pixel, -1 or 0, where a white one is 1; of images whose pixels are sampled.
    """

    channels: int
    factor: int
    scaling_factor: float
    codec: str = KL
    least: float = -1.0

    @property
    def components(self) -> tuple[str, ...]:
        """Name the networks without which no images can be made in this space."""
        return ("unet",) if self.codec == PIXELS else ("unet", DECODER)


SPACE = {"codec": KL, "least": -1.0}  # values of a space that a manifest need not state


@dataclass(frozen=True)
class Row:
    """One row of guidance: the prompts that the network sees in it, and the sources that it does not see."""

    prompt: str  # one of `PROMPTS`
    blank: tuple[str, ...] = ()  # kinds of sources that are zeros, or the class that is none


@dataclass(frozen=True)
class Guide:
    """How often the network runs for each image, and how its predictions are weighed.

    The prediction is p0 + s1 (p1 - p0) + s2 (p2 - p1) + ..., with one scale for each row but the first: for two rows
    classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598), for three that of InstructPix2Pix (Brooks et al.
    2023, arXiv:2211.09800, equation 3). Without guidance the last row runs alone.
    """

    rows: tuple[Row, ...] = (Row("negative"), Row("positive"))
    scales: tuple[str, ...] = ("guidance_scale",)  # fields of the request


@dataclass(frozen=True)
class Stage:
    """Describes one network that denoises, and what it is told.

    Attributes:
        space: Where its sampler moves.
        own: Height and width, in pixels, of the images that the model was trained on.
        reads: The sources of each input, by its name; those of one input are its channels, in order.
        guide: Its guidance.
        shortens: Whether the strength of an image shortens the sampler's grid, as for latent consistency models.
        depth: How many channels of a depth the decoder gives beside the colours: none, one, or three, of which the last
            two are its 16 bits.
        name: Its name.
        number: Its place in a cascade, from 0, which the manifest does not hold: it chooses the streams of noise.
    """

    space: Space
    own: tuple[int, int]
    reads: Mapping[str, tuple[Source, ...]] = field(default_factory=dict)
    guide: Guide = Guide()
    shortens: bool = False
    depth: int = 0
    name: str = BASE
    number: int = 0

    @property
    def size(self) -> int:
        """Return the longer side, in pixels, of the images that the model was trained on."""
        return max(self.own)

    @property
    def enlarges(self) -> int:
        """Return how many times larger than the image that it is given its image is: one as small as latents is."""
        small = next((source for source in self.beside if source.kind in SMALL_KINDS), None)
        if small is None:
            return 1
        return self.space.factor * (int(small.setting("times")) if "times" in KINDS[small.kind] else 1)

    @property
    def max_noise_level(self) -> int:
        """Return the last timestep whose noise may be added to the image that the network is given."""
        level = self.source("noise_level")
        return 0 if level is None else int(level.setting("most"))

    @property
    def classes(self) -> int:
        """Return how many classes can be drawn; 0 where the network is told none."""
        source = self.source("class")
        return 0 if source is None else int(source.setting("count")) - int(source.setting("null"))

    @property
    def beside(self) -> tuple[Source, ...]:
        """Return the sources of the channels that the network sees beside the state."""
        return tuple(source for source in self.reads.get(SAMPLE, ()) if source.kind != "state")

    def source(self, kind: str) -> Source | None:
        """Return the source of a kind; None where no input has it."""
        return next((source for sources in self.reads.values() for source in sources if source.kind == kind), None)

    @property
    def channels_beside(self) -> dict[str, int]:
        """Return how many channels each source beside the state gives: of latents, of a mask, or of an image."""
        colours = self.space.channels if self.space.codec == PIXELS else 3
        widths = {"mask": 1, **dict.fromkeys(SMALL_KINDS, colours)}
        return {source.kind: widths.get(source.kind, self.space.channels) for source in self.beside}

    @property
    def input_channels(self) -> int:
        """Return how many channels the network sees: those of the latents, and those beside them."""
        return self.space.channels + sum(self.channels_beside.values())

    @property
    def schedulers(self) -> tuple[str, ...]:
        """Name the folders of the schedulers that add noise to an image which the network is given."""
        return tuple(str(source.setting("scheduler")) for source in self.beside if source.kind in NOISED_KINDS)

    @property
    def takes_image(self) -> bool:
        """Tell whether the network is given the image, so that the latents do not start from it."""
        return any(source.kind in IMAGE_KINDS for source in self.beside)

    @property
    def takes_mask(self) -> bool:
        """Tell whether the network is given a mask."""
        return any(source.kind in MASK_KINDS for source in self.beside)

    def to_json(self) -> JsonObject:
        """Return the stage as the manifest holds it."""
        return {
            "name": self.name,
            "space": {name: value for name, value in vars(self.space).items() if SPACE.get(name) != value},
            "own": list(self.own),
            "reads": {name: [{"from": s.kind, **s.settings} for s in sources] for name, sources in self.reads.items()},
            "guide": {
                "rows": [{"prompt": row.prompt, "blank": list(row.blank)} for row in self.guide.rows],
                "scales": list(self.guide.scales),
            },
            "shortens": self.shortens,
            "depth": self.depth,
        }


def stage_of_configs(unet: JsonObject, vae: JsonObject | None, index: JsonObject) -> Stage:
    """Derive the stage of a model from the configs that diffusers writes.

    Args:
        unet: unet/config.json.
        vae: vae_decoder/config.json; None for a model without an autoencoder, which works in pixels.
        index: model_index.json, which states three properties of pipelines; it may be empty.

    Raises:
        BundleError: A value is missing or invalid.
    """
    space = _space_of_config(vae) if vae is not None else Space(channels_of(unet), 1, 1.0, PIXELS)
    sides = sides_of(unet.get("sample_size"))
    stage = Stage(
        space,
        own=(sides[0] * space.factor, sides[1] * space.factor),
        reads=_reads_of_configs(unet, space, index),
        shortens="LatentConsistencyModel" in str(index.get("_class_name")),
    )
    guided = "timestep_cond" not in stage.reads and PROMPT in stage.reads
    return stage if guided else replace(stage, guide=Guide((Row("positive"),), ()))


def channels_of(unet: JsonObject) -> int:
    """Return the channels that a U-Net without anything beside its state takes."""
    return whole("unet/config.json", "in_channels", unet.get("in_channels"), 3)


def _space_of_config(vae: JsonObject) -> Space:
    """Return the latents of an autoencoder."""
    file = "vae_decoder/config.json"
    widths = vae.get("block_out_channels")
    if not isinstance(widths, list) or not 0 < len(widths) <= MOST:
        found = None if widths is None else f"{widths!r:.100}"
        raise BundleError("bundle", f"{file} has no block_out_channels", expected="a list of widths", found=found)
    codec = CODEC_OF.get(str(vae.get("_class_name")), KL)
    name = "vq_embed_dim" if codec == VQ and vae.get("vq_embed_dim") else "latent_channels"
    channels = whole(file, name, vae.get(name), 3 if codec == VQ else 4)
    return Space(
        channels, 2 ** (len(widths) - 1), positive(file, "scaling_factor", vae.get("scaling_factor"), 0.18215), codec
    )


def _reads_of_configs(unet: JsonObject, space: Space, index: JsonObject) -> dict[str, tuple[Source, ...]]:
    """Return the sources of a U-Net's inputs: of one with attention to a context that is a prompt's."""
    zeros = truth("force_zeros_for_empty_prompt", index.get("force_zeros_for_empty_prompt"))
    scored = truth("requires_aesthetics_score", index.get("requires_aesthetics_score"))
    xl = bool(unet.get("addition_embed_type"))
    masked = space.codec != PIXELS and unet.get("in_channels") == 2 * space.channels + 1
    reads: dict[str, tuple[Source, ...]] = {
        SAMPLE: (Source("state"), *((Source(kind) for kind in MASK_KINDS) if masked else ())),
        TIMESTEP: (Source("timestep"),),
    }
    if unet.get("_class_name") != PLAIN:
        settings = ({"penultimate": True} if xl else {}) | ({"zeros": True} if zeros else {})
        reads[PROMPT] = (Source("prompt", settings),)
    if xl:
        reads[POOLED] = (Source("pooled_prompt"),)
        reads["time_ids"] = (Source("sizes", {"scored": True} if scored else {}),)
    if unet.get("time_cond_proj_dim"):
        reads["timestep_cond"] = (Source("guidance_scale"),)
    if unet.get("num_class_embeds"):
        count = whole("unet/config.json", "num_class_embeds", unet["num_class_embeds"], 1)
        reads[CLASSES] = (Source("class", {"count": count}),)
    return reads
