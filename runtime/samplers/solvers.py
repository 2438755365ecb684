"""The solvers: each walks the grid and yields a row of the plan for every evaluation of the network.

A row is written as its paper writes it, on symbols: `x` the latents, `m` the network's prediction for them, `x0` the
clean latents that it predicts, `z` unit noise, and latents saved by earlier rows. They are unit vectors, so the formula
of the new latents *is* the row's coefficients. See docs/samplers.md for how to add one.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from ldmrt.runtime.errors import InvalidRequest

from .config import Config
from .grid import Grid, Node
from .schedule import Floats, split

Row = tuple[Node, list[Floats]]  # where the network is evaluated; the new x and the new saved latents


def symbols(saved: int = 0) -> tuple[Floats, ...]:
    """Return x, the saved latents, m, z and x0 as unit vectors, (saved + 4,) each."""
    m, *state, z, x0 = np.eye(saved + 4)
    return (*state, m, z, x0)


def read(c: Config, node: Node, x: Floats, m: Floats) -> Floats:
    """Return x0 in terms of x and the prediction m, by `prediction_type`.

    Args:
        c: The config of a scheduler.
        node: Where the network is evaluated.
        x: The latents, as a vector of symbols, (n,), or as themselves.
        m: The prediction, like `x`.
    """
    _, a, s = node
    if "sigma_data" in c:  # Karras et al. 2022, table 1
        sign = 1 if c["prediction_type"] == "epsilon" else -1
        x0: Floats = c["sigma_data"] ** 2 * a * x + sign * c["sigma_data"] * s * m
        return x0
    match c["prediction_type"]:
        case "epsilon":
            return (x - s * m) / a
        case "v_prediction":  # Salimans & Ho 2022, appendix D
            return a * x - s * m
        case "score":  # Song et al. 2021: m is the gradient of log p(x); Tweedie's formula
            return (x + s**2 * m) / a
        case "flow_prediction":  # Liu et al. 2022: m = eps - x0
            return x - s * m
        case _:  # "sample"
            return m


def noise_in(x: Floats, x0: Floats, node: Node) -> Floats:
    """Return eps of x = alpha x0 + sigma eps."""
    return (x - node.alpha * x0) / node.sigma


def raw_eps(grid: Grid, node: Node, x: Floats, m: Floats) -> Floats:
    """Return eps as it is before x0 is clipped."""
    if grid.config["prediction_type"] == "v_prediction" and "sigma_data" not in grid.config:
        return node.alpha * m + node.sigma * x  # as diffusers has it, also on flow sigmas, where it is not eps
    return noise_in(x, read(grid.config, node, x, m), node)


def _fresh(node: Node, to: Node) -> float:
    """Return the deviation of the noise that a step of DDPM draws (Ho et al. 2020, equation 7)."""
    return to.sigma / node.sigma * math.sqrt(max(0.0, 1 - (node.alpha / to.alpha) ** 2))


def spread(node: Node, to: Node) -> float:
    """Return the largest variance of a step by the smallest, between which a network may choose (`learned_range`)."""
    return (1 - (node.alpha / to.alpha) ** 2) / max(_fresh(node, to) ** 2, 1e-20)


def ddim(grid: Grid) -> Iterator[Row]:
    """Solve the probability flow by Euler's method in DDIM's variables (Song et al. 2021, equation 12).

    eta is the share of fresh noise; 1 is Euler ancestral.
    """
    x, m, z, x0 = symbols()
    for node, to in grid.walk():
        n = grid.config["eta"] * _fresh(node, to)
        yield node, [to.alpha * x0 + math.sqrt(max(0.0, to.sigma**2 - n**2)) * raw_eps(grid, node, x, m) + n * z]


def ddpm(grid: Grid) -> Iterator[Row]:
    """Draw from the reverse process (Ho et al. 2020, algorithm 2).

    A learned variance is the network's second half (Nichol & Dhariwal 2021).
    """
    x, _, z, x0 = symbols()
    for node, to in grid.walk():
        small = _fresh(node, to)
        mean = to.alpha * x0 + math.sqrt(max(0.0, to.sigma**2 - small**2)) * noise_in(x, x0, node)
        drawn = max(small, 1e-10)
        if grid.config["variance_type"] == "fixed_large":
            drawn = math.sqrt(1 - (node.alpha / to.alpha) ** 2)
        elif grid.config["variance_type"] == "learned":
            drawn = 1.0
        yield node, [mean + drawn * (node.t > 0) * z]


def _churned(grid: Grid, node: Node, x: Floats, m: Floats, z: Floats) -> tuple[float, Floats, Floats]:
    """Raise the noise level by fresh noise (Karras et al. 2022, algorithm 2); return the level, x / alpha and x0.

    As in diffusers the network has seen x before the noise.
    """
    c, level = grid.config, node.level
    gamma = min(c["s_churn"] / len(grid), math.sqrt(2) - 1) if c["s_tmin"] <= level <= c["s_tmax"] else 0.0
    raised = level * (1 + gamma)
    up = x / node.alpha + c["s_noise"] * math.sqrt(raised**2 - level**2) * z
    there = node
    if "sigma_data" in c:
        alpha = 1 / math.sqrt(raised**2 + c["sigma_data"] ** 2)
        there = Node(node.t, alpha, alpha * raised)
    elif c["prediction_type"] == "epsilon":
        there = Node(node.t, *split(raised))
    return raised, up, read(c, there, up * there.alpha, m)


def euler(grid: Grid) -> Iterator[Row]:
    """Solve dx/dlevel = (x - x0) / level by Euler's method, for latents that are not scaled (Karras et al. 2022)."""
    x, m, z, _ = symbols()
    for node, to in grid.walk():
        level, up, x0 = _churned(grid, node, x, m, z)
        yield node, [to.alpha * x0 + to.sigma / level * (up - x0)]


def heun(grid: Grid) -> Iterator[Row]:
    """Take Euler's step, then the mean of both slopes (Karras et al. 2022, algorithm 1); the last step is Euler's."""
    x, slope, m, z, x0 = symbols(1)
    for node, to in grid.walk():
        level, up, clean = _churned(grid, node, x, m, z)
        clean = clean if grid.config["s_churn"] else x0  # x0 may be clipped
        first, change = (up - clean) / level, to.level - level
        yield node, [to.alpha * (up + change * first), first]
        if to.sigma:
            yield to, [x + to.alpha * change * (noise_in(x, x0, to) - slope) / 2, 0 * x]


def dpm2(grid: Grid) -> Iterator[Row]:
    """Take the slope at the geometric middle of a step: DPM-Solver-2 as in k-diffusion; with eta = 1 ancestral."""
    x, start, _, z, x0 = symbols(1)
    for node, to in grid.walk():
        n = grid.config["eta"] * _fresh(node, to)
        down = math.sqrt(max(0.0, to.sigma**2 - n**2)) / to.alpha
        eps = noise_in(x, x0, node)
        if not to.sigma:
            yield node, [to.alpha * (x / node.alpha + (down - node.level) * eps), 0 * x]
            continue
        middle = grid.between(math.sqrt(node.level * down))
        yield node, [middle.alpha * (x / node.alpha + (middle.level - node.level) * eps), x / node.alpha]
        yield middle, [to.alpha * (start + (down - node.level) * noise_in(x, x0, middle)) + n * z, 0 * x]


def dpm_sde(grid: Grid) -> Iterator[Row]:
    """Solve the SDE by singlestep DPM-Solver++ (k-diffusion, `sample_dpmpp_sde`), on one Brownian motion a step."""
    x, start, wiener, _, z, x0 = symbols(2)

    def toward(frm: Node, base: Floats, to: Node, noise: Floats) -> Floats:
        n = min(to.level, to.level / frm.level * math.sqrt(frm.level**2 - to.level**2))
        down = math.sqrt(to.level**2 - n**2)
        return down / frm.level * base + (1 - down / frm.level) * x0 + n * noise

    for node, to in grid.walk():
        if not to.sigma:
            yield node, [to.alpha * x0, 0 * x, 0 * x]
            continue
        middle = grid.between(math.sqrt(node.level * to.level))
        yield node, [middle.alpha * toward(node, x / node.alpha, middle, z), x / node.alpha, z]
        share = (node.level - middle.level) / (node.level - to.level)  # of the motion's variance
        motion = math.sqrt(share) * wiener + math.sqrt(1 - share) * z
        yield middle, [to.alpha * toward(node, start, to, motion), 0 * x, 0 * x]


BASHFORTH: list[list[float]] = [
    [1],
    [3 / 2, -1 / 2],
    [23 / 12, -16 / 12, 5 / 12],
    [55 / 24, -59 / 24, 37 / 24, -9 / 24],
]


def _adams(slopes: Sequence[Floats]) -> Floats:
    """Return Adams-Bashforth's mean of the newest four slopes or fewer, newest first."""
    return weighted(BASHFORTH[min(len(slopes), 4) - 1], slopes)


def weighted(weights: Sequence[float], values: Sequence[Floats]) -> Floats:
    """Sum values with their weights; values without a weight do not count."""
    out: Floats = np.sum([w * v for w, v in zip(weights, values, strict=False)], axis=0)
    return out


def lms(grid: Grid) -> Iterator[Row]:
    """Integrate the polynomial through the last four slopes: linear multistep (k-diffusion, `sample_lms`)."""
    x, *saved, _, _, x0 = symbols(3)
    points, weights = np.polynomial.legendre.leggauss(4)  # exact for these cubics
    for i, (node, to) in enumerate(grid.walk(), grid.begin):
        # diffusers counts the order from the whole grid, also where img2img has not seen the slopes before.
        past = [grid.steps[i - k][0].level for k in range(min(i + 1, 4))]
        half = (to.level - node.level) / 2
        at = node.level + half * (1 + points)
        lagrange = [
            half * weights @ np.prod([at**0, *((at - q) / (p - q) for q in past if q != p)], axis=0) for p in past
        ]
        slopes = [noise_in(x, x0, node), *saved]
        yield node, [to.alpha * (x / node.alpha + weighted(lagrange, slopes[: i - grid.begin + 1])), *slopes[:3]]


def ipndm(grid: Grid) -> Iterator[Row]:
    """Apply Adams-Bashforth to eps: improved PNDM (Liu et al. 2022; Zhang & Chen 2022, appendix)."""
    x, *saved, m, _, _ = symbols(3)
    for i, (node, to) in enumerate(grid.walk()):
        slopes = [node.sigma * x + node.alpha * m, *saved]
        eps = _adams(slopes[: i + 1])
        yield node, [to.alpha * (x - node.sigma * eps) / max(node.alpha, 1e-8) + to.sigma * eps, *slopes[:3]]


def _leap(grid: Grid, frm: float, to: float, x: Floats, m: Floats) -> Floats:
    """Take DDIM's step between two training timesteps, as PNDM does."""
    here, there = grid.at(frm), grid.at(to)
    eps = raw_eps(grid, here, x, m)
    return there.alpha / here.alpha * (x - here.sigma * eps) + there.sigma * eps


def pndm(grid: Grid) -> Iterator[Row]:
    """Begin with three Runge-Kutta steps, then apply Adams-Bashforth to m (Liu et al. 2022, algorithm 2).

    With `skip_prk_steps` it begins with one step of Heun instead (PLMS). img2img cuts the list of rows, as diffusers
    does.
    """
    c, times = grid.config, [node.t for node, _ in grid.steps]
    stride = c["num_train_timesteps"] // len(times)
    if c["skip_prk_steps"]:
        yield from _plms(grid, (times[:1] + times[1:2] * 2 + times[2:])[grid.begin :], stride)
        return
    if len(times) < 4:
        raise InvalidRequest("scheduler", "too few steps for Runge-Kutta", expected="4 steps, or skip_prk_steps true")
    x, start, total, *saved, m, _, _ = symbols(5)
    halves = [t + offset for t in times[:4] for offset in (stride // 2, 0)][1:]
    timesteps = [t for t in halves for _ in range(2)][1:-1] + times[3:]
    for i, t in enumerate(timesteps[grid.begin :]):
        if i >= 12:
            yield grid.at(t), [_leap(grid, t, t - stride, x, _adams([m, *saved])), x, x, m, *saved[:2]]
            continue
        stage, to = i % 4, t if i % 2 else t - stride // 2
        base = start if stage else x
        mean = (total if stage else 0) + m / (6, 3, 3, 6)[stage]
        slopes = saved if stage else [m, *saved[:2]]
        yield grid.at(t), [_leap(grid, times[i // 4], to, base, mean if stage == 3 else m), base, mean, *slopes]


def _plms(grid: Grid, timesteps: list[float], stride: int) -> Iterator[Row]:
    """Begin with one step of Heun, then apply Adams-Bashforth to m."""
    x, *saved, m, _, _ = symbols(3)
    for i, t in enumerate(timesteps):
        if i == 1:  # Heun's second half: back from t + stride, where the last latents were saved
            yield grid.at(t), [_leap(grid, t + stride, t, saved[2], (m + saved[0]) / 2), *saved]
            continue
        slopes = [m, *saved[: i - 1]] if i else [m]
        newest = [m, saved[0], saved[1]] if i else [m, saved[1], x]
        yield grid.at(t), [_leap(grid, t, t - stride, x, _adams(slopes)), *newest]


def lcm(grid: Grid) -> Iterator[Row]:
    """Alternate a consistency function and fresh noise (Luo et al. 2023, arXiv:2310.04378, algorithm 3)."""
    x, _, z, x0 = symbols()
    for i, (node, to) in enumerate(grid.walk(), grid.begin):
        t = node.t * grid.config["timestep_scaling"]
        skip, out = 0.25 / (t**2 + 0.25), t / math.sqrt(t**2 + 0.25)
        clean = out * x0 + skip * x
        yield node, [clean if i == len(grid) - 1 else to.alpha * clean + to.sigma * z]


def tcd(grid: Grid) -> Iterator[Row]:
    """Alternate a trajectory consistency function and noise (Zheng et al. 2024, arXiv:2402.19159, algorithm 4).

    eta is its gamma.
    """
    x, m, z, _ = symbols()
    for node, to in grid.walk():
        middle = grid.at(float(np.floor(np.float32(1 - grid.config["eta"]) * np.float32(to.t))))
        x0 = read(grid.config, node, x, m)
        there = middle.alpha * x0 + middle.sigma * noise_in(x, x0, node)
        signal = to.alpha / middle.alpha
        yield node, [signal * there + math.sqrt(max(0.0, 1 - signal**2)) * z]
