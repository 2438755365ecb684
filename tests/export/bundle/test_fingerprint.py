"""A bundle's hashes of its networks stay those of the checkpoint, whatever later versions of ldmrt know."""

from pathlib import Path

from ldmrt.export.components.fingerprint import fingerprint
from ldmrt.export.components.table import components
from ldmrt.model import load

MODEL = Path(__file__).parents[3] / "model" / "pretrained" / "emoji64"
# The beginnings of the hashes in bundles that version 0.1.0 exported.
CONFIGS = {
    "text_encoder": "ccba40bab06e",
    "unet": "4f4d068bc0e7",
    "vae_decoder": "d6966e218d64",
    "vae_encoder": "a3bbe7872203",
}


def test_configs_have_the_hashes_of_earlier_bundles() -> None:
    parts = components(load(MODEL))  # but for the text encoder, whose config is of the version of transformers
    assert {name: fingerprint(parts[name])["config"][:12] for name in CONFIGS} == CONFIGS
