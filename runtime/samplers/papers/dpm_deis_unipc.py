"""The exponential integrators: DPM-Solver, DPM-Solver++ and their SDEs, DEIS, UniPC. Written as in `solvers.py`."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from ldmrt.runtime.samplers.config import Config
from ldmrt.runtime.samplers.grid import Grid, Node
from ldmrt.runtime.samplers.schedule import Floats
from ldmrt.runtime.samplers.solvers import Row, noise_in, raw_eps, symbols, weighted


class Exponential:
    """Computes a step that is exact in the linear part (Lu et al. 2022, arXiv:2211.01095, section 4).

    The step of such an exponential integrator is

        x' = carry * x + size * (phi_1 D0 + phi_2 D1 + phi_3 D2) + drawn * z

    with D0, D1, D2 the value, slope and curvature, over the step, of x0 (data prediction, "++") or of eps.
    """

    def __init__(self, node: Node, to: Node, algorithm: str) -> None:
        """Compute the coefficients of a step between two nodes; `algorithm` is an `algorithm_type` of diffusers."""
        h, sde, data = to.lam - node.lam, algorithm.startswith("sde"), algorithm.endswith("++")
        self.h = h
        if data:
            self.carry, self.size = to.sigma / node.sigma * (math.exp(-h) if sde else 1), to.alpha
            self.reach = 2 * h if sde else h
            self.drawn = to.sigma * math.sqrt(max(0.0, -math.expm1(-2 * h))) if sde else 0.0
        else:
            self.carry, self.size = to.alpha / node.alpha, to.sigma * (2 if sde else 1)
            self.reach = -h
            self.drawn = to.sigma * math.sqrt(max(0.0, math.expm1(2 * h))) if sde else 0.0
        self.phi1 = -math.expm1(-self.reach)
        self.phi2 = 1 - self.phi1 / self.reach if h else 0.0
        # diffusers subtracts the half in the SDE too, where the expansion asks to add it.
        self.phi3 = (self.phi1 - self.reach) / self.reach**2 + (-0.5 if sde else 0.5) if 0 < h < math.inf else 0.0

    def step(self, x: Floats, terms: Sequence[tuple[float, Floats]], z: Floats) -> Floats:
        """Compute the new latents x' from x, the terms (phi, D) and unit noise z."""
        return self.carry * x + self.size * weighted(*zip(*terms, strict=True)) + self.drawn * z


def _remembered(grid: Grid, node: Node, x: Floats, m: Floats, x0: Floats) -> Floats:
    """Return x0 or eps, whichever the solver of the DPM family remembers of a row."""
    if grid.config["algorithm_type"].endswith("++"):
        return x0
    x0_is_read = not grid.config["thresholding"] and grid.config["algorithm_type"] != "deis"
    return raw_eps(grid, node, x, m) if x0_is_read else noise_in(x, x0, node)


def dpm_multistep(grid: Grid) -> Iterator[Row]:
    """Solve by multistep DPM-Solver or DPM-Solver++, orders 1 to 3, or for their SDEs.

    Lu et al. 2022, arXiv:2211.01095, algorithm 2. DEIS on log rho is the same on eps, exact for polynomials (Zhang &
    Chen 2022, equation 15).
    """
    c, count = grid.config, len(grid)
    x, *saved, m, z, x0 = symbols(c["solver_order"] - 1)
    few = c["lower_order_final"] and count < 15
    for i, (node, to) in enumerate(grid.walk(), grid.begin):
        order = min(c["solver_order"], i - grid.begin + 1)
        if i == count - 1 and (few or c["euler_at_final"] or c["final_sigmas_type"] == "zero"):
            order = 1
        elif i == count - 2 and few:
            order = min(order, 2)
        e, d = Exponential(node, to, c["algorithm_type"]), [_remembered(grid, node, x, m, x0), *saved]
        terms = [(e.phi1, d[0])]
        if order > 1 and e.h:
            back = [grid.steps[i - k][0].lam for k in range(order)]
            r0 = (back[0] - back[1]) / e.h
            slope = (d[0] - d[1]) / r0
            if order == 2:
                terms += [(e.phi1 / 2 if c["solver_type"] == "midpoint" else e.phi2, slope)]
            else:
                r1 = (back[1] - back[2]) / e.h
                bend = (slope - (d[1] - d[2]) / r1) / (r0 + r1)
                # The parabola's integral asks for twice the bend, as DEIS has it; DPM-Solver's authors take it once.
                terms += [(e.phi2, slope + r0 * bend), (e.phi3, 2 * bend if c["algorithm_type"] == "deis" else bend)]
        yield node, [e.step(x, terms, z), *d[: len(saved)]]


def _orders(order: int, steps: int, c: Config) -> list[int]:
    """Return the order of every step of a singlestep solver, as its authors' code counts them."""
    lower = c["lower_order_final"] or steps % order or c["final_sigmas_type"] == "zero"
    blocks, rest = divmod(steps, order)
    block = list(range(1, order + 1))
    if not lower:
        return block * blocks
    tail = [1, 2, 1] if order == 3 else [1] * order
    orders = block * (blocks - 1) + tail if not rest else block * blocks + block[:rest]
    return [*orders[:-1], 1] if c["final_sigmas_type"] == "zero" else orders


def dpm_singlestep(grid: Grid) -> Iterator[Row]:
    """Solve by singlestep DPM-Solver or DPM-Solver++, orders 1 to 3.

    Lu et al. 2022, arXiv:2206.00927, algorithms 1 and 2.
    """
    c = grid.config
    x, start, d1, d2, m, z, x0 = symbols(3)
    orders = _orders(c["solver_order"], len(grid), c)
    for i, (node, to) in enumerate(grid.walk(), grid.begin):
        order = min(orders[i], i - grid.begin + 1)
        first = grid.steps[i - order + 1][0]
        e, d0 = Exponential(first, to, c["algorithm_type"]), _remembered(grid, node, x, m, x0)
        base = x if order == 1 else start
        terms = [(e.phi1, (d0, d1, d2)[order - 1])]
        if order == 2:
            r = (node.lam - first.lam) / e.h
            terms += [(e.phi1 / 2 if c["solver_type"] == "midpoint" else e.phi2, (d0 - d1) / r)]
        elif order == 3:
            r0, r1 = (node.lam - first.lam) / e.h, (grid.steps[i - 1][0].lam - first.lam) / e.h
            far, near = (d0 - d2) / r0, (d1 - d2) / r1
            if c["solver_type"] == "midpoint":
                terms += [(e.phi2, far)]
            else:
                terms += [(e.phi2, (r0 * near - r1 * far) / (r0 - r1)), (e.phi3, 2 * (far - near) / (r0 - r1))]
        yield node, [e.step(base, terms, z), base, d0, d1]


def unipc(grid: Grid) -> Iterator[Row]:
    """Correct the last step with the prediction at its end, then take the next: UniPC.

    Zhao et al. 2023, arXiv:2302.04867, algorithms 5 to 8.
    """
    c = grid.config
    x, last, *saved, m, z, x0 = symbols(c["solver_order"] + 1)
    algorithm = "dpmsolver++" if c["predict_x0"] else "dpmsolver"

    def step(i: int, base: Floats, order: int, d: Sequence[Floats], end: Floats | None) -> Floats:
        """Step from node i, with d[0] there; the step is corrected where the value at its end is known."""
        (node, to), h = grid.steps[i], grid.steps[i][1].lam - grid.steps[i][0].lam
        if h == 0:  # levels that end at their own least one
            return base
        e = Exponential(node, to, algorithm)
        ratios = [(grid.steps[i - k][0].lam - node.lam) / h for k in range(1, order)] + [1.0] * (end is not None)
        values = [*d[1:order], *([] if end is None else [end])]
        terms = [(e.phi1, d[0])]
        if ratios:
            hh, size = -e.reach, e.reach if c["solver_type"] == "bh1" else e.phi1
            b, phi = [], math.expm1(hh) / hh - 1
            for k in range(1, len(ratios) + 1):
                b.append(phi * math.factorial(k) / -size)
                phi = phi / hh - 1 / math.factorial(k + 1)
            powers = np.vander(ratios, increasing=True).T
            # The authors take 1/2 for the system of one unknown.
            rho = [0.5] if len(ratios) == 1 else np.linalg.solve(powers, b)
            terms += [(size * r, (v - d[0]) / q) for r, v, q in zip(rho, values, ratios, strict=True)]
        return e.step(base, terms, z)

    before = 0
    for i, (node, _) in enumerate(grid.walk(), grid.begin):
        value = x0 if c["predict_x0"] else raw_eps(grid, node, x, m)
        corrected = x
        if before and i - 1 not in c["disable_corrector"]:
            corrected = step(i - 1, last, before, saved, value)
        order = min(c["solver_order"], i - grid.begin + 1)
        before = min(order, len(grid) - i) if c["lower_order_final"] else order
        d = [value, *saved]
        yield node, [step(i, corrected, before, d, None), corrected, *d[: len(saved)]]
