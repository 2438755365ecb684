"""The families of checkpoints as diffusers' pipelines, small and with random weights."""

from .plain import PLAIN as PLAIN
from .stable_diffusion import _OLD_FIELDS as _OLD_FIELDS
from .stable_diffusion import _OLD_NAMES as _OLD_NAMES
from .stable_diffusion import CAPTIONS as CAPTIONS
from .stable_diffusion import CONDITIONED as CONDITIONED
from .stable_diffusion import END as END
from .stable_diffusion import FAMILIES as FAMILIES
from .stable_diffusion import FULL_UNETS as FULL_UNETS
from .stable_diffusion import FULL_VAE as FULL_VAE
from .stable_diffusion import LENGTH as LENGTH
from .stable_diffusion import START as START
from .stable_diffusion import Config as Config
from .stable_diffusion import Family as Family
