"""The comparison of two revisions tells what differs, where, and how much of it."""

import json

import numpy as np
import pytest
from same_bytes import differences

STEPS = [["start", 0, 0, True, (1.5).hex()], ["blocks", 0, 0, False, (1.25).hex()]]


def arrays():
    return {
        "mask/0.weight": np.array([[True, False], [True, True]]),
        "weights/0.weight": np.array([[0.5, 0.0], [-1.0, 2.0]], dtype=np.float32),
        "weights/0.bias": np.array([np.nan, 1.0], dtype=np.float32),
    }


def kept(folder, changed=(), removed=None, **facts):
    """A folder with the results of a run called "small"."""
    folder.mkdir()
    found = {name: array for name, array in (arrays() | dict(changed)).items() if name != removed}
    np.savez(folder / "small.npz", **found)
    (folder / "small.json").write_text(json.dumps({"steps": STEPS, "layers": []} | facts))
    return folder


def one_bit_off(name):
    """The array of that name with the lowest bit of its last entry's first byte turned."""
    content = bytearray(arrays()[name].tobytes())
    content[-arrays()[name].itemsize] ^= 1
    return {name: np.frombuffer(bytes(content), arrays()[name].dtype).reshape(arrays()[name].shape)}


def test_equal_results_are_the_same_though_they_hold_nan(tmp_path):
    one, other = kept(tmp_path / "one", seconds=1.0), kept(tmp_path / "other", seconds=2.0)
    assert differences(one, other, "small") == []


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (one_bit_off("mask/0.weight"), "mask: 1 of 1 arrays (0.weight 1 of 4)"),
        (one_bit_off("weights/0.weight"), "weights: 1 of 2 arrays (0.weight 1 of 4)"),
        (
            {"weights/0.weight": np.array([[0.5, -0.0], [-1.0, 2.0]], dtype=np.float32)},
            "weights: 1 of 2 arrays (0.weight 1 of 4)",
        ),
        (
            {"weights/0.bias": np.array([np.nan, 1.0])},
            "weights: 1 of 2 arrays (0.bias float32[2] before, float64[2] now)",
        ),
        ({"mask/1.weight": np.array([True])}, "mask: 1 of 2 arrays (1.weight only now)"),
    ],
    ids=["mask", "one bit", "signed zero", "dtype", "more"],
)
def test_one_byte_that_differs_is_told_by_its_name(tmp_path, changed, told):
    one, other = kept(tmp_path / "one"), kept(tmp_path / "other", changed)
    assert differences(one, other, "small") == [told]


def test_an_array_that_is_gone_is_a_difference(tmp_path):
    one, other = kept(tmp_path / "one"), kept(tmp_path / "other", removed="weights/0.bias")
    assert differences(one, other, "small") == ["weights: 1 of 2 arrays (0.bias only before)"]


def test_a_loss_that_is_one_bit_off_is_told_with_the_step(tmp_path):
    steps = [STEPS[0], [*STEPS[1][:4], np.nextafter(1.25, 2).hex()]]
    one, other = kept(tmp_path / "one"), kept(tmp_path / "other", steps=steps)
    assert differences(one, other, "small") == [
        f"steps: 1 of 2, the first is number 1: {STEPS[1]} before, {steps[1]} now"
    ]


def test_a_step_too_few_is_told(tmp_path):
    one, other = kept(tmp_path / "one"), kept(tmp_path / "other", steps=STEPS[:1])
    assert differences(one, other, "small") == [
        f"steps: 1 of 2, the first is number 1: {STEPS[1]} before, None now"
    ]


def test_a_run_that_failed_is_a_difference_even_from_one_that_failed_too(tmp_path):
    one = kept(tmp_path / "one", error="ValueError: no")
    other = kept(tmp_path / "other", error="ValueError: no")
    assert differences(one, other, "small") == [
        "failed before: ValueError: no",
        "failed now: ValueError: no",
    ]
