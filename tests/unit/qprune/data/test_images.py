"""Images changed at random, and which changes a dense network bears."""

import pytest
import torch
from torch import nn

import qprune
from qprune.data.calibration import Calibration
from qprune.data.images import ShiftImages, SuitedImages, WarpImages, natural
from qprune.data.inputs import Inputs
from qprune.errors import CalibrationError, ImpossibleRequestError
from qprune.objective.losses import DenseOutputs
from qprune.objective.samples import augmentation_for

STILL = {"degrees": 0.0, "zoom": 0.0, "pixels": 0.0, "copies": 1}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(number=40):
    """Smooth ones, as photographs are: a blot somewhere on each."""
    places = torch.rand(number, 2, generator=seeded(1)) * 4 + 6
    rows, cols = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    squared = (rows - places[:, 0, None, None]) ** 2 + (cols - places[:, 1, None, None]) ** 2
    return torch.exp(-squared / 20)[:, None]


def test_without_any_change_images_are_themselves():
    torch.testing.assert_close(WarpImages(**STILL)(images(), seeded()), images())


def test_a_mirrored_image_is_flipped_left_to_right():
    made = WarpImages(**STILL | {"mirror": True})(images(), seeded())
    kept = (made - images()).abs().amax((1, 2, 3)) < 1e-4
    assert 10 < int(kept.sum()) < 30
    torch.testing.assert_close(made[~kept], images()[~kept].flip(-1))


def test_a_disc_stays_a_disc_when_an_image_that_is_no_square_is_turned():
    rows, cols = torch.meshgrid(torch.arange(16.0), torch.arange(32.0), indexing="ij")
    disc = torch.exp(-((rows - 7.5) ** 2 + (cols - 15.5) ** 2) / 15).expand(8, 1, 16, 32)
    made = WarpImages(**STILL | {"degrees": 90.0})(disc, seeded())
    torch.testing.assert_close(made, disc, atol=0.03, rtol=0)
    larger = WarpImages(**STILL | {"zoom": 0.3})(disc, seeded())
    assert larger.sum((1, 2, 3)).std() > 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_seed_gives_the_same_images_of_the_same_type(dtype):
    before = torch.random.get_rng_state()
    change = qprune.Mixup(2, 0.5, WarpImages(mirror=True, copies=1))
    one, other = (change(images().to(dtype), seeded(3)) for _ in range(2))
    assert torch.equal(one, other)
    assert (one.dtype, one.shape) == (dtype, (80, 1, 16, 16))
    assert not torch.equal(one, change(images().to(dtype), seeded(4)))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_flat_images_are_changed_as_images():
    flat = WarpImages(shape=(1, 16, 16), copies=2)(images().flatten(1), seeded())
    assert torch.equal(flat.view(80, 1, 16, 16), WarpImages(copies=2)(images(), seeded()))


def test_both_images_of_a_blend_are_changed_before():
    moved = WarpImages(copies=1)(images(), generator := seeded())
    partner = torch.randperm(40, generator=generator)
    share = (0.5 * torch.rand(40, generator=generator)).view(-1, 1, 1, 1)
    made = qprune.Mixup(1, 0.5, WarpImages(copies=1))(images(), seeded())
    torch.testing.assert_close(made, moved + share * (moved[partner] - moved))


@pytest.mark.parametrize("change", [WarpImages(), ShiftImages(), SuitedImages()])
@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        (torch.zeros(4, 9), "no images"),
        (torch.zeros(4, 2, 9), "no images"),
        (torch.zeros(4, 1, 3, 3, dtype=torch.long), "floating-point"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(change, inputs, reason):
    with pytest.raises(CalibrationError, match=reason) as refused:
        change(inputs, seeded())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "options", [{"degrees": -1.0}, {"zoom": 1.0}, {"pixels": float("nan")}, {"copies": -1}]
)
def test_numbers_that_make_no_sense_are_refused(options):
    with pytest.raises(ImpossibleRequestError, match=next(iter(options))):
        WarpImages(**options)


class Blots(nn.Module):
    """Where a blot lies, as two coordinates; or how large it is, wherever it lies."""

    def __init__(self, *, place):
        super().__init__()
        self.place = place

    def forward(self, x):
        if not self.place:
            return x.sum((1, 2, 3))[:, None]
        share = x[:, 0] / x.sum((1, 2, 3))[:, None, None]
        line = torch.arange(16.0) - 7.5
        return torch.stack([(share.sum(2) * line).sum(1), (share.sum(1) * line).sum(1)], 1)


def chosen(model, inputs, *, blends=True):
    def felt(changed, same):
        with torch.no_grad():
            return float((model(changed) - model(same)).square().mean())

    return SuitedImages(copies=3).chosen(inputs, felt, blends=blends)


def test_a_network_is_shown_only_what_it_bears():
    placed = chosen(Blots(place=True), images())
    assert isinstance(placed, qprune.Mixup)
    assert (placed.copies, placed.of.copies) == (3, 1)
    assert isinstance(placed.of, WarpImages)
    assert not placed.of.mirror
    sized = chosen(Blots(place=False), images() * torch.linspace(1, 3, 40).view(-1, 1, 1, 1))
    assert (sized.mirror, sized.degrees, sized.zoom) == (True, 10.0, 0.0)


def test_images_that_keep_their_labels_are_not_blended():
    assert isinstance(chosen(Blots(place=True), images(), blends=False), WarpImages)


def test_what_only_has_the_shape_of_an_image_is_not_turned():
    torch.manual_seed(0)
    noise, model = torch.randn(60, 1, 40, 40), nn.Sequential(nn.Flatten(), nn.Linear(1600, 5))
    assert chosen(model, noise) == qprune.Mixup(3, 0.25, ShiftImages(copies=1))
    assert chosen(model, noise, blends=False) == ShiftImages(copies=3)


def test_tokens_and_several_tensors_are_left_alone():
    tokens = torch.ones(6, 5, dtype=torch.long)
    assert natural(tokens) is None
    assert natural(Inputs((torch.zeros(2, 1, 4, 4), torch.zeros(2, 3)))) is None
    assert natural(torch.zeros(6, 1, 9, 9, dtype=torch.uint8)) is None
    assert natural(torch.zeros(6, 100)) == qprune.Mixup()
    assert natural(torch.zeros(6, 1, 9, 9)) == SuitedImages(rich=False)


def test_losses_with_labels_get_images_that_keep_them():
    data = Calibration(images(), torch.zeros(40, dtype=torch.long))
    for loss in (qprune.Labels(), DenseOutputs()):
        found = augmentation_for(SuitedImages(), loss, data, lambda changed, same: 0.0)
        assert found.keeps_labels == loss.needs_labels
    with pytest.raises(CalibrationError, match="no images"):
        augmentation_for(SuitedImages(), loss, Calibration(torch.zeros(4, 9)), lambda a, b: 0.0)


def test_the_report_says_what_was_used():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    options = {"sparsity": 0.5, "sampler": "greedy"}
    options["method"] = qprune.Networkwise(stages=1, rounds=0, final_rounds=0)
    told = qprune.prune(model, images(), **options).report.settings["augment"]
    assert told.startswith("ShiftImages(pixels=2, mirror=")
    rich = qprune.prune(model, images(), **options, augment=SuitedImages()).report
    assert rich.settings["augment"].startswith(("Mixup(copies=8", "WarpImages("))
    told = qprune.prune(model, images(), **options, augment=None).report.settings["augment"]
    assert told is None
