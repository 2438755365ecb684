"""Describe how images are made as data: which networks run, in which space, and where each of their inputs comes from.

A manifest holds a list of stages, so the pipeline knows no family of models. One without, and a folder that optimum
exported, are read as the one stage that their configs describe.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ldmrt.runtime.errors import BundleError
from ldmrt.runtime.files.reading import JsonObject

from .graphs import DECODER, UNET

Setting = bool | int | float | str
SAMPLE, TIMESTEP = "sample", "timestep"  # inputs of every U-Net
PROMPT, POOLED, CLASSES = "encoder_hidden_states", "text_embeds", "class_labels"
PROMPT_MASK = "encoder_attention_mask"
IMAGE_PROMPT, IMAGE_SCALE = "image_prompt", "image_prompt_scale"
# Where an input, or some channels of it, may come from: the settings of each kind, by their types.
KINDS: Mapping[str, Mapping[str, type]] = {
    **{kind: {} for kind in ("state", "timestep")},
    "prompt": {"penultimate": bool, "zeros": bool},  # the layer that is taken; whether no negative prompt is zeros
    "pooled_prompt": {},
    # Stable Diffusion 3: CLIP's states side by side, filled up to a width with zeros, then so many tokens of T5
    "joint_prompt": {"width": int, "tokens": int},
    "joint_pooled_prompt": {},  # of both CLIP encoders side by side
    "t5_prompt": {"tokens": int},  # FLUX.1: so many tokens of T5, and CLIP's pooled embedding beside them
    "clip_pooled_prompt": {},
    "masked_prompt": {"tokens": int},  # PixArt: so many tokens of T5, of a prompt in small letters
    "instructed_prompt": {"tokens": int, "instruction": str},  # Sana: of Gemma, which reads an instruction before it
    "chat_prompt": {"tokens": int, "template": str},  # Z-Image: of Qwen3, where "{}" stands in a template
    "prompt_mask": {},  # 1 for each of its tokens, 0 for what fills it up
    "sizes": {"scored": bool},  # of SDXL; whether they end with an aesthetic score
    "guidance_scale": {},  # embedded, for a distilled network
    "guidance": {},  # the same as a number, which the network embeds itself
    "kept_layers": {"layers": str},  # a number for each row: 0 where it skips these layers, such as "7,8,9", else 1
    "class": {"count": int, "null": bool},  # whether the last one is none, which rows without a class are given
    "noise_level": {"most": int},  # that was added to the image
    **{IMAGE_PROMPT: {"encoded": bool}, IMAGE_SCALE: {"blocks": str}},  # of an IP-Adapter: tokens, their scales
    "mask": {},
    "mask_pixels": {},  # those under each latent as its channels
    "masked_image": {},  # its latents
    "control_image": {},  # its latents
    "image_latents": {},  # the autoencoder's mean, not scaled
    "context_image": {},  # the same as latents, which become tokens of their own: FLUX.1 Kontext
    "small_image": {},  # as small as the latents
    "noised_image": {"scheduler": str},  # the same, with noise that the scheduler in this folder adds
    "enlarged_image": {"scheduler": str, "times": int},  # a small image enlarged so often, then with noise
}
NOISED_KINDS = ("noised_image", "enlarged_image")  # they are given noise of a level that the network is told
SMALL_KINDS = ("small_image", *NOISED_KINDS)  # images in colours, whose enlargement is drawn
CONTEXT = "context_image"
IMAGE_KINDS = ("image_latents", "control_image", CONTEXT, *SMALL_KINDS)  # the image is then no start for the latents
MASK_KINDS, FILL_KINDS = ("mask", "masked_image"), ("masked_image", "mask_pixels")  # of U-Nets, and of FLUX.1 Fill
JOINT, LONG = "joint_prompt", "t5_prompt"
MASKED_KINDS = MASKED, INSTRUCTED, CHAT = "masked_prompt", "instructed_prompt", "chat_prompt"  # padding is not seen
PROMPT_KINDS = ("prompt", JOINT, LONG, *MASKED_KINDS)  # embeddings of a request's prompt
PROMPTS = ("negative", "positive")
TRUE_CFG, FROM_PROMPT = "true_cfg_scale", "guidance_from_prompt"  # FLUX.1's own; Z-Image's: 1 + `guidance_scale`
KEPT, SKIP = "kept_layers", "skip_layer_guidance_scale"  # Stable Diffusion 3.5: of a row that skips layers
SCALES = ("guidance_scale", "image_guidance_scale", TRUE_CFG, SKIP, FROM_PROMPT)  # fields of a request, but the last
ON_REQUEST = (TRUE_CFG, SKIP)  # scales of rows that run where a request asks for them alone
GUIDANCE_SCALE = 5.0  # where neither a request nor a stage states one
BASE = "base"  # the name of a model's first stage
LARGEST = 1 << 16  # channels, or latents along one side
MOST = 16  # stages, rows of guidance, or sources of an input
KL, VQ, TINY, DEEP, PIXELS = "kl", "vq", "tiny", "deep", "none"
# An autoencoder that gives Gaussians, one with a codebook, a tiny and a deep one that give latents, and none.
CODECS = (KL, VQ, TINY, DEEP, PIXELS)
CODEC_OF = {"VQModel": VQ, "AutoencoderTiny": TINY, "AutoencoderDC": DEEP}  # by the class in diffusers; any other is KL


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
        shift_factor: It is subtracted from the autoencoder's latents before they are scaled.
        patch: Latents along one side that a transformer reads as one token; 1 for a U-Net.
    """

    channels: int
    factor: int
    scaling_factor: float
    codec: str = KL
    least: float = -1.0
    shift_factor: float = 0.0
    patch: int = 1

    @property
    def unit(self) -> int:
        """Return how many pixels the sides of an image are multiples of."""
        return self.factor * self.patch


# Values of a space, and of a stage, that a manifest need not state.
SPACE = {"codec": KL, "least": -1.0, "shift_factor": 0.0, "patch": 1}
STAGE = {"network": UNET, "largest": 0, "trailing": False, "guidance_scale": GUIDANCE_SCALE}
PREVIEW_KEYS = ("scaling_factor", "shift_factor")  # what a manifest states of a preview decoder


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
    2023, arXiv:2211.09800, equation 3). Without guidance the last row runs alone. A row before them that skips layers
    adds s (p_last - p_skip), as diffusers' pipeline of Stable Diffusion 3 does.
    """

    rows: tuple[Row, ...] = (Row("negative"), Row("positive"))
    scales: tuple[str, ...] = ("guidance_scale",)  # fields of the request

    @property
    def rows_by_default(self) -> int:
        """Return how many rows run for an image where a request asks for no more."""
        return len(self.rows) - sum(scale in ON_REQUEST for scale in self.scales)


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
        network: The component that denoises, one of `DENOISERS`.
        largest: The longest side, in pixels, that the network has positions for; 0 where there is no limit.
        trailing: Whether the noise levels of n steps of a flow are 1, 1 - 1/n, ..., 1/n before they are shifted, in
            place of those of its scheduler.
        guidance_scale: Of a request that states none.
        preview: The latents of its preview decoder, which differ from its own in scale and shift; None without one.
        number: Its place in a cascade, from 0, which the manifest does not hold: it chooses the streams of noise.
    """

    space: Space
    own: tuple[int, int]
    reads: Mapping[str, tuple[Source, ...]] = field(default_factory=dict)
    guide: Guide = Guide()
    shortens: bool = False
    depth: int = 0
    name: str = BASE
    network: str = UNET
    largest: int = 0
    trailing: bool = False
    guidance_scale: float = GUIDANCE_SCALE
    preview: Space | None = None
    number: int = 0

    @property
    def components(self) -> tuple[str, ...]:
        """Name the networks without which no images can be made."""
        return (self.network,) if self.space.codec == PIXELS else (self.network, DECODER)

    def tokens(self, size: tuple[int, int]) -> int | None:
        """Return how many tokens a transformer reads of an image of (height, width) pixels; None for a U-Net."""
        unit = self.space.unit
        return None if self.network == UNET else max(1, size[0] // unit) * max(1, size[1] // unit)

    @property
    def state(self) -> str:
        """Return the name of the network's input that is the latents, with the channels beside them."""
        return next((name for name, sources in self.reads.items() if sources[0].kind == "state"), SAMPLE)

    @property
    def prompt(self) -> Source | None:
        """Return the source of the prompt's embeddings; None for a model that reads no prompt."""
        return next((source for kind in PROMPT_KINDS if (source := self.source(kind)) is not None), None)

    def of_tokens(self, count: int) -> "Stage":
        """Return the same stage with another number of tokens that T5 reads of a prompt.

        Raises:
            BundleError: The model has no T5.
        """
        reads = {
            name: tuple(replace(one, settings={**one.settings, "tokens": count}) for one in sources)
            for name, sources in self.reads.items()
            if "tokens" in KINDS[sources[0].kind]
        }
        if not reads:
            problem = "there is no T5 whose tokens could be counted"
            raise BundleError("checkpoint", problem, expected="no --max-sequence-length")
        return replace(self, reads={**self.reads, **reads})

    def skipping(self, layers: Sequence[int]) -> "Stage":
        """Return the same stage with a row of guidance that skips these layers.

        Raises:
            BundleError: The model is no Stable Diffusion 3.
        """
        if self.prompt is None or self.prompt.kind != JOINT:
            problem, expected = "this model skips no layers", "Stable Diffusion 3 or 3.5, or no --skip-layers"
            raise BundleError("checkpoint", problem, expected=expected)
        source = Source(KEPT, {"layers": ",".join(map(str, sorted({*layers})))})
        guide = Guide((Row("positive", blank=(KEPT,)), *self.guide.rows), (SKIP, *self.guide.scales))
        return replace(self, reads={**self.reads, KEPT: (source,)}, guide=guide)

    @property
    def skipped_layers(self) -> tuple[int, ...]:
        """Return the layers that a row of guidance may skip; none where there is no such row."""
        source = self.source(KEPT)
        return () if source is None else tuple(map(int, str(source.setting("layers")).split(",")))

    def previewed(self, scaling_factor: float, shift_factor: float) -> "Stage":
        """Return the same stage with a preview decoder, which takes latents of this scale and shift."""
        own = replace(self.space, codec=TINY, scaling_factor=scaling_factor, shift_factor=shift_factor)
        return replace(self, preview=own)

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
        return tuple(source for source in self.reads.get(self.state, ()) if source.kind != "state")

    def source(self, kind: str) -> Source | None:
        """Return the source of a kind; None where no input has it."""
        return next((source for sources in self.reads.values() for source in sources if source.kind == kind), None)

    @property
    def channels_beside(self) -> dict[str, int]:
        """Return how many channels each source beside the state gives: of latents, of a mask, or of an image."""
        colours = self.space.channels if self.space.codec == PIXELS else 3
        widths = {"mask": 1, "mask_pixels": self.space.factor**2, **dict.fromkeys(SMALL_KINDS, colours)}
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
        return any(source.kind in (*MASK_KINDS, *FILL_KINDS) for source in self.beside)

    def to_json(self) -> JsonObject:
        """Return the stage as the manifest holds it."""
        preview = self.preview
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
            **{name: value for name, usual in STAGE.items() if (value := getattr(self, name)) != usual},
            **({} if preview is None else {"preview": {name: getattr(preview, name) for name in PREVIEW_KEYS}}),
        }
