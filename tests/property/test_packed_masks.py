"""A mask comes back from its file bit by bit, and a file that is no mask is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from qprune.errors import RunFolderError
from qprune.network.mask_file import FORMAT, pack, packed_bytes, read_mask, unpack

shapes = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple)


@given(shape=shapes, seed=st.integers(0, 1000))
def test_one_bit_a_weight_there_and_back(shape, seed):
    kept = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = pack(kept)
    assert packed.numel() == -(-kept.numel() // 8)
    assert torch.equal(unpack(packed, shape), kept)


def test_the_first_weight_is_the_lowest_bit():
    kept = torch.tensor([True, False, True, False, False, False, False, False, True])
    assert pack(kept).tolist() == [5, 1]
    assert pack(kept.view(3, 3).T).tolist() == pack(kept.view(3, 3).T.contiguous()).tolist()


def test_names_and_shapes_are_in_the_file(tmp_path):
    generator = torch.Generator().manual_seed(0)
    mask = {
        "a.weight": torch.rand(5, 7, generator=generator) < 0.5,
        "experts.up": torch.rand(3, 4, 5, generator=generator) < 0.5,
    }
    path = tmp_path / "mask.safetensors"
    path.write_bytes(packed_bytes(mask))
    read = read_mask(path)
    assert set(read) == set(mask)
    assert all(torch.equal(read[name], kept) for name, kept in mask.items())
    assert path.stat().st_size < 400


def test_plain_bool_tensors_are_read_too(tmp_path):
    mask = {"a.weight": torch.tensor([[True, False]])}
    save_file(mask, tmp_path / "mask.safetensors")
    assert torch.equal(read_mask(tmp_path / "mask.safetensors")["a.weight"], mask["a.weight"])


@pytest.mark.parametrize(
    ("tensors", "metadata", "reason"),
    [
        ({"a": torch.zeros(3)}, None, "not bool"),
        ({}, None, "it is empty"),
        ({"a": torch.zeros(3, dtype=torch.uint8)}, {"version": "2"}, "version 2"),
        ({"a": torch.zeros(3, dtype=torch.uint8)}, {"shapes": '{"a": [3, 3]}'}, "2 bytes"),
        ({"a": torch.zeros(3, dtype=torch.uint8)}, {"shapes": "{}"}, "holds no mask"),
    ],
)
def test_what_is_no_mask_is_refused(tmp_path, tensors, metadata, reason):
    path = tmp_path / "mask.safetensors"
    if metadata is not None:
        metadata = {"format": FORMAT, "version": "1"} | metadata
    save_file(tensors, path, metadata)
    with pytest.raises(RunFolderError, match=reason):
        read_mask(path)


def test_a_file_that_is_missing_or_cut_off_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="cannot read the mask"):
        read_mask(tmp_path / "mask.safetensors")
    whole = packed_bytes({"a": torch.ones(100, dtype=torch.bool)})
    (tmp_path / "mask.safetensors").write_bytes(whole[:-5])
    with pytest.raises(RunFolderError, match="holds no mask"):
        read_mask(tmp_path / "mask.safetensors")


def test_equal_masks_give_equal_bytes():
    mask = {name: torch.arange(9) % 2 == 0 for name in "abc"}
    assert len({packed_bytes(mask) for _ in range(20)}) == 1
