"""Print what `ldmrt evaluate` has measured, as JSON or as tables and curves."""

import json
from typing import Any

import click

from ldmrt.model.training.diffusion.by_timestep import GAMMA, LossByTimestep
from ldmrt.tools.console import tables
from ldmrt.tools.console.drawing.curve import curve

from .emoji import Scores as EmojiScores
from .enlarging import Scores
from .network import Bound, Measured


def show_scores(scores: dict[str, Any], network: Measured, features: str | None, as_json: bool) -> None:
    """Print scores of drawn images, and what was measured of the network.

    Args:
        scores: Of drawn images, by name; may be empty.
        network: The loss by timestep, and the variational bound.
        features: The name of the features that scores are of.
        as_json: Whether to print one JSON object.
    """
    loss, bound = network.loss, network.bound
    if as_json:
        named = {"features": features} if features else {}
        losses = {"loss": loss_json(loss)} if loss else {}
        bounds = {"bound": bound_json(bound)} if bound else {}
        click.echo(json.dumps({**scores, **named, **losses, **bounds}, indent=2))
        return
    if scores:
        tables.show(("measure", "value"), [(name, f"{value:.4g}") for name, value in scores.items()])
    if loss:
        show_loss(loss)
    if bound:
        show_bound(bound)


def loss_json(loss: LossByTimestep) -> dict[str, Any]:
    """Return the means over images, by timestep and of all."""
    parts = {"simple": loss.simple, "min_snr": loss.min_snr}
    found = {name: each.double().mean(dim=0) for name, each in parts.items() if each is not None}
    return {
        "images": len(loss.simple),
        "timesteps": loss.times.tolist(),
        **{name: each.tolist() for name, each in found.items()},
        "mean": {name: float(each.mean()) for name, each in found.items()},
    }


def bound_json(bound: Bound) -> dict[str, Any]:
    """Return the means over images, in bits per dimension."""
    terms = bound.terms.mean(dim=0)
    return {
        "images": len(bound.prior),
        "of": "latents" if bound.latent else "images",
        "bits_per_dimension": float(bound.of_each.mean()),
        "standard_error": bound.standard_error,
        "L_T": float(bound.prior.mean()),
        "L_t": float(terms[1:].sum()),
        "L_0": float(terms[0]),
        "terms": terms.tolist(),
    }


def show_loss(loss: LossByTimestep) -> None:
    """Print the curve and the table of a loss by timestep."""
    means = loss_json(loss)
    columns = {"simple": "L_simple", "min_snr": f"min-SNR, gamma {GAMMA:g}"}
    names = [name for name in columns if name in means]
    first, last = means["timesteps"][0], means["timesteps"][-1]
    click.echo(f"L_simple of {means['images']} images, timesteps {first:g} to {last:g}")
    click.echo("\n".join(curve([max(value, 1e-12) for value in means["simple"]])))
    rows = [
        (f"{time:g}", *(f"{means[name][place]:.4g}" for name in names)) for place, time in enumerate(means["timesteps"])
    ]
    titles = ("timestep", *(columns[name] for name in names))
    tables.show(titles, [*rows, ("mean", *(f"{means['mean'][name]:.4g}" for name in names))], right=titles)


def show_bound(bound: Bound) -> None:
    """Print the parts of a variational bound, and which dimensions its bits are of."""
    means, last = bound_json(bound), bound.terms.shape[1]
    parts = {"L_T": "L_T", f"L_1 to L_{last - 1}": "L_t", "L_0": "L_0", "sum": "bits_per_dimension"}
    tables.show(("term", "bits/dim"), [(title, f"{means[name]:.4g}") for title, name in parts.items()])
    of = "the latents, whose L_0 is a density's" if bound.latent else "images of 256 levels"
    error = f"standard error {means['standard_error']:.2g} over {means['images']} images"
    click.echo(f"variational bound of {of}; {error}")


def show_enlarging(count: int, psnrs: Scores, as_json: bool) -> None:
    """Print what `enlarging_scores` returned, as JSON or as a table."""
    if as_json:
        click.echo(json.dumps({"pictures": count, "psnr": psnrs}, indent=2))
        return
    titles = list(next(iter(psnrs.values())))
    rows = [(kind, str(count), *(f"{row[title]:.2f}" for title in titles)) for kind, row in psnrs.items()]
    tables.show(("small images", "images", *(f"{title}, dB" for title in titles)), rows)


def show_emoji(scores: EmojiScores, autoencoder: dict[str, float], as_json: bool) -> None:
    """Print what `emoji_scores` returned, as JSON or as a table."""
    if as_json:
        click.echo(json.dumps({**scores, "autoencoder": autoencoder}, indent=2))
        return
    cells = [
        (title, f"{row['pictures']:.0f}", f"{row['background']:.3f}", f"{row['identity']:.3f}")
        for title, row in scores.items()
    ]
    tables.show(("", "images", "background", "identity"), cells)
    shown, psnr = autoencoder["pictures"], autoencoder["psnr"]
    click.echo(f"autoencoder: PSNR {psnr:.1f} dB over {shown} images of held-out pairs")
