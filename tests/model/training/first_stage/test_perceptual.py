"""The perceptual distance equals the plain lines of LPIPS on random weights; the lpips package needs torchvision."""

import pytest
import torch
from torch import Tensor, nn

from ldmrt.model.training.first_stage.discriminator import Discriminator
from ldmrt.model.training.first_stage.perceptual import GROUPS, Lpips, feature_distance
from ldmrt.runtime import LdmrtError

WIDTHS = (4, 6, 8, 8, 8)  # VGG16's are 64, 128, 256, 512, 512


def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    found, inner = {}, 3
    for k, (numbers, width) in enumerate(zip(GROUPS, WIDTHS, strict=True)):
        for n in numbers:
            found[f"net.slice{k + 1}.{n}.weight"] = torch.randn(width, inner, 3, 3) * (2 / (9 * inner)) ** 0.5
            found[f"net.slice{k + 1}.{n}.bias"] = 0.1 * torch.randn(width)
            inner = width
        found[f"lin{k}.model.1.weight"] = torch.rand(1, width, 1, 1)
    return found


def plain(given: dict[str, Tensor], first: Tensor, second: Tensor) -> Tensor:
    """VGG16's `features` in torchvision's order, cut after relu1_2, 2_2, 3_3, 4_3, 5_3 (Zhang et al. 2018)."""
    layers: list[nn.Module] = []
    for k, numbers in enumerate(GROUPS):
        layers += [nn.MaxPool2d(2, 2)] if k else []
        for n in numbers:
            weight = given[f"net.slice{k + 1}.{n}.weight"]
            assert len(layers) == n
            layers += [nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1), nn.ReLU()]
            layers[n].load_state_dict({"weight": weight, "bias": given[f"net.slice{k + 1}.{n}.bias"]})
    ends, total = [numbers[-1] + 2 for numbers in GROUPS], torch.zeros(len(first))
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    for k, end in enumerate(ends):
        features = []
        for x in (first, second):
            y = nn.Sequential(*layers[:end])((x - shift[None, :, None, None]) / scale[None, :, None, None])
            features.append(y / (torch.sqrt(torch.sum(y**2, dim=1, keepdim=True)) + 1e-10))
        difference = (features[0] - features[1]) ** 2
        total += nn.functional.conv2d(difference, given[f"lin{k}.model.1.weight"]).mean([2, 3])[:, 0]
    return total


def test_distance_equals_the_plain_lines_of_lpips() -> None:
    given = weights()
    first, second = torch.rand(2, 3, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(Lpips(given)(first, second), plain(given, first, second), rtol=1e-5, atol=1e-6)
    assert Lpips(given)(first, first).tolist() == [0.0] * 3


def test_distance_has_a_gradient_at_equal_images() -> None:
    network, x = Lpips(weights()), torch.zeros(1, 3, 16, 16, requires_grad=True)
    network(x, x.detach()).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert all(not weight.requires_grad for weight in network.parameters())


def test_weights_that_do_not_fit_are_named() -> None:
    given = weights()
    missing = {name: value for name, value in given.items() if name != "lin2.model.1.weight"}
    with pytest.raises(LdmrtError, match=r"the perceptual network lacks lin2\.model\.1\.weight"):
        Lpips(missing)
    with pytest.raises(
        LdmrtError, match=r"net\.slice2\.5\.weight of the perceptual network does not fit; expected any x 4"
    ):
        Lpips(given | {"net.slice2.5.weight": torch.zeros(4, 5, 3, 3)})


def test_distance_of_a_discriminators_features() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(2, 8)
    first, second = torch.rand(2, 3, 3, 16, 16, requires_grad=True)
    found = feature_distance(discriminator, first, second)
    pairs = list(zip(discriminator.features(first), discriminator.features(second), strict=True))
    expected = [sum((a[i] - b[i]).abs().mean() for a, b in pairs) / len(pairs) for i in range(3)]
    torch.testing.assert_close(found, torch.stack(expected))
    found.sum().backward()
    assert all(weight.grad is None for weight in discriminator.parameters())
    assert feature_distance(discriminator, first, first).tolist() == [0.0] * 3
