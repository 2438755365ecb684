"""The plan as a value: printed, and free of state."""

import math
import re

import numpy as np
import pytest

from ldmrt.runtime import SCHEDULERS

from ...support.plans import plan


@pytest.mark.parametrize("name", SCHEDULERS)
def test_printed_plan_shows_every_coefficient(name: str) -> None:
    made = plan(name, 5)
    head, *lines = str(made).split("\n")
    assert head.split() == ["row", "t", "alpha", "sigma"]
    assert len(lines) == made.rows
    registers = ["m", "x", *(f"s{i}" for i in range(1, made.table.shape[1])), "z", "x0"]
    for row, line in enumerate(lines):
        number, t, alpha, sigma = line.split()[:4]
        assert int(number) == row
        # printed with 3 and 5 places
        np.testing.assert_allclose(float(t), made.t[row], atol=0.0005)
        np.testing.assert_allclose([float(alpha), float(sigma)], [made.alpha[row], made.sigma[row]], atol=5e-6)
        read = np.zeros_like(made.table[row])
        for output, terms in re.findall(r"(\w+)' =((?: [+-]\S+ \w+)+)", line):
            for weight, register in re.findall(r"(\S+) (\w+)", terms):
                read[registers.index(output) - 1, registers.index(register)] = float(weight)
        np.testing.assert_allclose(read, made.table[row], rtol=5e-6)  # 6 digits


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_first_latents_have_the_variance_of_the_first_node(name: str, spacing: str) -> None:
    """1 for data of unit variance. Diffusers leaves the data out where its samplers with levels start from the last."""
    made = plan(name, timestep_spacing=spacing)
    late = spacing != "leading" and name in ("lms", "euler", "euler_a", "heun", "dpm2", "dpm2_a", "dpmpp_sde")
    late = late or name.startswith("score_ve")
    data = 0.0 if late else made.alpha[0]
    np.testing.assert_allclose(made.prior_scale, math.hypot(data, made.sigma[0]), rtol=1e-14)  # roundings of float64
