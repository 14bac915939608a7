"""Every form of calibration data against the inputs and labels that it means."""

import collections
import copy
import functools
import itertools
import logging
from collections import UserDict
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import qprune
from qprune.data.calibration import Calibration, as_calibration, plain
from qprune.data.inputs import Inputs, called
from qprune.errors import CalibrationError, ImpossibleRequestError, RunFolderError
from qprune.record.fingerprint import digest_of_data

X = torch.arange(24.0).view(8, 3)
Z = torch.arange(16.0).view(8, 2) + 100
Y = torch.arange(8) % 3
IDS = torch.arange(40).view(8, 5) + 3
MASK = torch.ones(8, 5, dtype=torch.long)
MASK[::2, 3:] = 0
TYPES = (torch.arange(40).view(8, 5) % 2).long()


class Taking(nn.Module):
    """A model whose forward is the given function."""

    def __init__(self, forward, **config):
        super().__init__()
        self.forward = forward
        self.weight = nn.Parameter(torch.zeros(1))
        if config:
            self.config = type("Config", (), config)()


def one(x):
    return x


def two(x, z):
    return x


def second_optional(x, z=None):
    return x


def anything(*args, **kwargs):
    return args[0]


def masked(input_ids=None, attention_mask=None, token_type_ids=None, labels=None):
    return input_ids


def lengths_too(input_ids, lengths=None):
    return input_ids


class Rows(Dataset):
    """A data set of (input, label), as torch's are."""

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return X[index], int(Y[index])


class Stream(IterableDataset):
    def __iter__(self):
        return zip(X, Y, strict=True)


class FromHub:
    """Looks like a Hugging Face data set: rows of Python's own types."""

    def __len__(self):
        return len(IDS)

    def __getitem__(self, index):
        return {
            "input_ids": IDS[index].tolist(),
            "attention_mask": MASK[index].tolist(),
            "label": int(Y[index]),
            "text": "words",
        }


@dataclass
class Record:
    x: torch.Tensor
    z: torch.Tensor
    y: torch.Tensor


Named = collections.namedtuple("Named", "x z y")


def endless():
    while True:
        yield X, Y


def in_batches(*tensors, size=3):
    return DataLoader(TensorDataset(*tensors), batch_size=size)


def by_keys(size=3, **tensors):
    return [
        {name: part[first : first + size] for name, part in tensors.items()}
        for first in range(0, 8, size)
    ]


FORMS = {
    "tensor": (X, one, X, None),
    "array of float64": (X.double().numpy(), one, X, None),
    "array of integers": (Y.numpy(), one, Y, None),
    "pair": ((X, Y), one, X, Y),
    "pair of arrays": ((X.double().numpy(), Z.double().numpy()), one, X, Z),
    "list of a pair": ([X, Y], one, X, Y),
    "list of a pair of floats": ([X, Z], one, X, Z),
    "list of a dict and labels": ([{"x": X}, Y], one, X, Y),
    "pair for any arguments": ((X, Z), anything, X, Z),
    "two inputs": ((X, Z), two, {"x": X, "z": Z}, None),
    "two inputs and labels": ((X, Z, Y), two, {"x": X, "z": Z}, Y),
    "a second, optional input": ((X, Z, Y), second_optional, {"x": X, "z": Z}, Y),
    "a pair although there could be two": ((X, Y), second_optional, X, Y),
    "a flag is no input": ((X, Z), lambda x, features=False: x, X, Z),
    "inputs in a tuple": (((X, Z), Y), two, {"x": X, "z": Z}, Y),
    "one argument that is a tuple": (((X, Z), Y), one, ((X, Z),), Y),
    "dict": ({"x": X, "z": Z, "y": Y}, second_optional, {"x": X, "z": Z}, Y),
    "dict of the first argument": ({"x": X, "labels": Y}, second_optional, X, Y),
    "dict of a later argument": ({"z": Z}, lambda x=None, z=None: z, {"z": Z}, None),
    "dict and labels": (({"x": X, "z": Z}, Y), two, {"x": X, "z": Z}, Y),
    "UserDict": (UserDict(x=X, z=Z, label=Y), two, {"x": X, "z": Z}, Y),
    "dataclass": (Record(X, Z, Y), two, {"x": X, "z": Z}, Y),
    "namedtuple, fields in another order": (
        Named(x=Z, z=X, y=Y),
        lambda z, x: x,
        {"x": Z, "z": X},
        Y,
    ),
    "label that forward requires": (
        {"x": X, "target": Z},
        lambda x, target: x,
        {"x": X, "target": Z},
        None,
    ),
    "loader": (in_batches(X, Y), one, X, Y),
    "loader of one tensor": (in_batches(X), one, X, None),
    "loader of (ids, mask, labels)": (
        in_batches(IDS, MASK, Y),
        masked,
        {"input_ids": IDS, "attention_mask": MASK},
        Y,
    ),
    "loader of numbers": (in_batches(Y, Y + 1), two, {"x": Y, "z": Y + 1}, None),
    "loader of a stream": (DataLoader(Stream(), batch_size=3), one, X, Y),
    "loader without batches": (DataLoader(Rows(), batch_size=None), one, X, Y),
    "list of batches": (list(in_batches(X, Y)), one, X, Y),
    "tuple of batches": (tuple(in_batches(X, Y)), one, X, Y),
    "list of tensors": ([X[:3], X[3:6], X[6:]], one, X, None),
    "two batches, the last one smaller": ([X[:5], X[5:]], one, X, None),
    "list of dicts": (
        by_keys(input_ids=IDS, attention_mask=MASK, token_type_ids=TYPES, labels=Y),
        masked,
        {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": TYPES},
        Y,
    ),
    "list of dicts of lists": (
        [{"input_ids": IDS.tolist(), "labels": Y.tolist()}],
        masked,
        IDS,
        Y,
    ),
    "data set": (Rows(), one, X, Y),
    "tensor data set": (TensorDataset(X, Z, Y), second_optional, {"x": X, "z": Z}, Y),
    "stream": (Stream(), one, X, Y),
    "rows with a number": ([(x, int(y)) for x, y in zip(X, Y, strict=True)], one, X, Y),
    "rows with a 0-d tensor": (list(zip(X, Y, strict=True)), one, X, Y),
    "rows of images": (
        [(x.view(3, 1, 1), y) for x, y in zip(X, Y, strict=True)],
        one,
        X.view(8, 3, 1, 1),
        Y,
    ),
    "rows of two lengths": (list(zip(X, Z, strict=True)), two, {"x": X, "z": Z}, None),
    "rows of one tensor": (list(X), one, X, None),
    "rows of lists": (X.tolist(), one, X, None),
    "rows of tokens": ([{"input_ids": ids} for ids in IDS], masked, IDS, None),
    "zip": (zip(X, Y, strict=True), one, X, Y),
    "rows of the hub": (FromHub(), masked, {"input_ids": IDS, "attention_mask": MASK}, Y),
    "generator": ((batch for batch in in_batches(X, Y)), one, X, Y),
    "boolean inputs": ((X > 7, Y), one, X > 7, Y),
    "names beside": ([(X, Y, ["a"] * 8)], one, X, Y),
    "labels that are words": ([(X, ["a"] * 8)], one, X, None),
    "nothing for an optional argument": ({"x": X, "z": None}, second_optional, X, None),
    "a key that forward does not take": ({"x": X, "idx": Y, "name": ["a"] * 8}, one, X, None),
}


def same(found, wanted):
    if isinstance(wanted, torch.Tensor):
        return found.dtype == wanted.dtype and torch.equal(found, wanted)
    if isinstance(wanted, dict):
        keys = isinstance(found, dict) and found.keys() == wanted.keys()
        return keys and all(same(found[key], wanted[key]) for key in wanted)
    if isinstance(wanted, tuple):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    return found is wanted


def tree(data):
    return data.inputs.tree if isinstance(data.inputs, Inputs) else data.inputs


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_as_what_it_means(form):
    given, forward, inputs, labels = FORMS[form]
    data = as_calibration(given, Taking(forward))
    assert same(tree(data), inputs)
    assert same(data.labels, labels)
    assert isinstance(data.inputs, torch.Tensor) == isinstance(inputs, torch.Tensor)


@pytest.mark.parametrize(
    "given",
    [
        (X, Y),
        in_batches(X, Y),
        Rows(),
        DataLoader(Stream(), batch_size=3),
        endless,
        endless(),
        itertools.cycle(in_batches(X, Y)),
        Calibration(X, Y),
    ],
    ids=lambda given: type(given).__name__,
)
def test_the_first_so_many_are_taken(given):
    data = as_calibration(given, Taking(one), num_samples=5)
    assert torch.equal(data.inputs, X[:5])
    assert torch.equal(data.labels, Y[:5])


def test_what_has_no_end_is_read_no_further_than_needed(caplog):
    drawn = []

    def batches():
        for index in itertools.count():
            drawn.append(index)
            yield X + index

    data = as_calibration(batches(), Taking(one), num_samples=9)
    assert drawn == [0, 1]
    assert data.inputs.untyped_storage().nbytes() == 9 * 3 * 4
    with caplog.at_level(logging.INFO, "qprune"):
        assert len(as_calibration(endless(), Taking(one))) == 1024
    assert "first 1024" in caplog.text


REFUSED = {
    "two floats of one shape": ([X, X + 1], one, r"the tuple \(X, Y\)"),
    "two inputs or a pair": ((IDS, MASK), masked, "pass a dict by the argument names"),
    "lengths or labels": ((IDS, Y), lengths_too, "pass a dict by the argument names"),
    "three for any arguments": ((X, Z, Y), anything, "pass a dict by the argument names"),
    "three or two inputs": ((X, Z, Z), lambda x, z=None, w=None: x, r"w=None\) does not say"),
    "too many": ((X, Z, Z, Y), two, "holds 4 tensors"),
    "too few": ((X,), two, "holds 1 tensors"),
    "a missing argument": ({"x": X, "w": Z}, two, r"forward\(x, z\) needs z, .* has x, w"),
    "no argument at all": ({"a": X}, second_optional, "needs x, .* has a"),
    "a class or a label": ({"x": X, "y": Y}, lambda x, y=None: x, "'y' is the label in most"),
    "words that forward takes": ({"x": X, "z": ["a"] * 8}, two, "'z' is list of str"),
    "nothing that forward takes": ({"x": X, "z": None}, two, "'z' is NoneType"),
    "tensors that do not agree": ({"x": X, "z": Z[:5]}, two, r"\(8, 3\), \(5, 2\)"),
    "numbers, in rows or batches": ([(Y, Y)] * 3, two, "pass a DataLoader of batches"),
    "two tuples": (((X, Z), (X, Z)), two, "a tuple of two tuples"),
    "lengths without a mask": ([IDS, IDS[:, :4], IDS], one, "attention_mask"),
    "other kinds of batches": ([{"x": X}, (X, Y), {"x": X}], one, "do not fit together"),
    "empty loader": (DataLoader([]), one, "empty"),
    "words": ("digits", one, "calibration must be"),
    "empty tuples": ([(), ()], one, "calibration must be"),
    "list of words": (["a", "b"], one, "calibration must be"),
    "a number": (5, one, "calibration must be"),
    "images of many sizes": ([([X, X], [X, X])] * 3, lambda x, y=None: x, "the inputs of a"),
    "an index beside": (enumerate([(X, Y)] * 3), one, "as enumerate does"),
    "masked array": (np.ma.masked_array(np.zeros((8, 3))), one, "MaskedArray"),
    "sparse": (X.to_sparse(), one, "layout torch.sparse_coo"),
    "nan in a second input": ({"x": X, "z": Z / 0 * 0}, two, "sample 0 holds NaN"),
    "labels of another length": ((X, Y[:5]), one, "8 calibration inputs but 5 labels"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_cannot_be_known_is_refused_with_the_way_out(form):
    given, forward, message = REFUSED[form]
    with pytest.raises(CalibrationError, match=message) as refusal:
        as_calibration(given, Taking(forward))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("number", [0, -1, 2.0, True])
def test_a_number_of_samples_that_is_none_is_refused(number):
    with pytest.raises(ImpossibleRequestError, match="num_calibration_samples"):
        as_calibration(X, num_samples=number)


def test_keys_that_are_left_out_are_named(caplog):
    as_calibration({"x": X, "idx": Y, "name": ["a"] * 8}, Taking(one))
    assert (
        "left out of the calibration batches, since forward(x) does not take them: idx, name"
        in (caplog.text)
    )
    caplog.clear()
    as_calibration([(X, Y, ["a"] * 8)], Taking(one))
    assert "list of str" in caplog.text


class Passing(nn.Module):
    """Calls the module inside with whatever it is given."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *args, **kwargs):
        return self.model(*args, **kwargs)


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, Passing, lambda m: torch.compile(m, backend="eager")]
)
def test_the_module_inside_a_wrapper_says_what_is_taken(wrap):
    data = as_calibration((X, Z), wrap(Taking(two)))
    assert same(tree(data), {"x": X, "z": Z})


@pytest.mark.parametrize(
    ("pad_token_id", "hidden", "pad"), [(1, 0, 1), (None, 9, 9), (None, None, 0)]
)
def test_batches_of_two_lengths_are_padded_to_the_longest(pad_token_id, hidden, pad):
    long = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": IDS % 2}
    short = {name: tensor[:, :3].clone() for name, tensor in long.items()}
    if hidden is not None:
        short["input_ids"][0, 2], short["attention_mask"][0, 2] = hidden, 0
    data = as_calibration([long, short], Taking(masked, pad_token_id=pad_token_id))
    ids, mask = (data.inputs.tree[name] for name in ("input_ids", "attention_mask"))
    assert torch.equal(ids[:8], IDS)
    assert torch.equal(ids[8:, :3], short["input_ids"])
    assert ids[8:, 3:].unique().tolist() == [pad]
    assert torch.equal(mask[8:, :3], short["attention_mask"])
    assert not mask[8:, 3:].any()
    assert data.labels[8:, 3:].unique().tolist() == [-100]


def test_padding_goes_where_the_padding_is():
    short, long = IDS[:2, :3].clone(), IDS[:2]
    seen = torch.tensor([[0, 1, 1], [1, 1, 1]])
    batches = [
        {"input_ids": short, "attention_mask": seen},
        {"input_ids": long, "attention_mask": torch.ones_like(long)},
    ]
    made = as_calibration(batches, Taking(masked, pad_token_id=0)).inputs.tree
    assert torch.equal(made["input_ids"][:2, 2:], short)
    assert made["attention_mask"][0].tolist() == [0, 0, 0, 1, 1]


def test_labels_go_to_a_decoder_that_makes_its_inputs_of_them():
    model = Taking(masked, is_encoder_decoder=True)
    data = as_calibration({"input_ids": IDS, "labels": TYPES}, model)
    assert same(tree(data), {"input_ids": IDS, "labels": TYPES})
    assert torch.equal(data.labels, TYPES)
    of_sequences = as_calibration({"input_ids": IDS, "labels": Y}, model)
    assert same(tree(of_sequences), IDS)


def test_labels_of_a_language_model_are_those_of_the_next_token():
    class TinyForCausalLM(Taking):
        pass

    data = as_calibration({"input_ids": IDS, "labels": IDS}, TinyForCausalLM(masked))
    assert torch.equal(data.labels[:, :-1], IDS[:, 1:])
    assert data.labels[:, -1].tolist() == [-100] * 8
    same_tokens = as_calibration((IDS, IDS), TinyForCausalLM(masked))
    assert torch.equal(same_tokens.labels, data.labels)
    moved = as_calibration((IDS, IDS + 1), TinyForCausalLM(masked))
    assert torch.equal(moved.labels, IDS + 1)


def of_x(model, batch):
    return model(batch["x"])


def of_record(model, batch):
    return model(batch.x)


def test_a_function_of_ones_own_gets_the_batch_as_it_was():
    data = as_calibration({"x": X, "y": Y}, Taking(one), forward=of_x)
    assert same(tree(data), {"x": X, "y": Y})
    assert torch.equal(data.labels, Y)
    assert torch.equal(called(Taking(one), data.inputs[2:4]), X[2:4])
    data = as_calibration([Record(X, Z, Y)] * 2, Taking(one), forward=of_record)
    assert torch.equal(called(Taking(one), data.inputs[2:4]), X[2:4])
    data = as_calibration([(X, (Z, Z), Y)], Taking(one), forward=lambda model, b: b[1][1])
    assert torch.equal(called(Taking(one), data.inputs[6:]), Z[6:])
    assert torch.equal(data.labels, Y)
    data = as_calibration(X, Taking(one), forward=lambda model, b: model(b + 1))
    assert torch.equal(called(Taking(one), data.inputs), X + 1)


def test_the_global_generator_is_where_it_was():
    loader = DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True)
    before = torch.get_rng_state()
    as_calibration(loader, Taking(one))
    assert torch.equal(torch.get_rng_state(), before)


def test_all_tensors_and_the_function_are_in_the_fingerprint():
    def digest(inputs, labels=Y, **kwargs):
        return digest_of_data(as_calibration(Calibration(inputs, labels), **kwargs))

    base = digest({"x": X, "z": Z})
    assert base == digest({"x": X.clone(), "z": Z.clone()})
    others = [
        digest({"x": X, "z": Z + 1}),
        digest({"x": X, "w": Z}),
        digest({"x": X, "z": Z}, Y + 1),
        digest({"x": X, "z": Z}, forward=of_x),
        digest({"x": X, "z": Z}, forward=of_record),
    ]
    assert len({base, *others}) == 6
    assert digest({"x": X, "z": Z}, forward=of_x) == others[3]


def named_inside():
    shift = X[:1]

    def forward(model, batch):
        return model(batch + shift)

    return forward


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda model, batch: model(batch), "is a lambda"),
        (named_inside(), "holds variables of the function around it"),
        (functools.partial(of_x), "is an object of type partial"),
    ],
)
def test_only_runs_that_can_be_resumed_need_a_named_function(tmp_path, forward, reason):
    model, kwargs = (
        nn.Linear(3, 4),
        {"sparsity": 0.5, "method": qprune.Networkwise(stages=1), "compensate": False},
    )
    given = X if not isinstance(forward, functools.partial) else {"x": X}
    with pytest.raises(ImpossibleRequestError, match=reason):
        qprune.prune(model, given, output_dir=tmp_path / "run", forward=forward, **kwargs)
    pruned = qprune.prune(model, given, forward=forward, **kwargs)
    assert int((pruned.model.weight == 0).sum()) == 6


def test_a_run_with_a_named_function_is_resumed(tmp_path):
    kwargs = {
        "method": qprune.Networkwise(stages=2),
        "compensate": False,
        "forward": of_x,
        "sparsity": 0.5,
    }
    torch.manual_seed(0)
    model = nn.Linear(3, 4)
    dense = copy.deepcopy(model)
    whole = qprune.prune(copy.deepcopy(dense), {"x": X}, **kwargs)
    qprune.prune(model, {"x": X}, output_dir=tmp_path / "run", **kwargs)
    again = qprune.prune(copy.deepcopy(dense), {"x": X}, resume_from=tmp_path / "run", **kwargs)
    assert torch.equal(again.mask["weight"], whole.mask["weight"])
    with pytest.raises(RunFolderError, match="calibration data"):
        qprune.prune(dense, {"x": X + 1}, resume_from=tmp_path / "run", **kwargs)


def test_a_mask_that_masks_nothing_is_left_out():
    ones = torch.ones_like(IDS)
    assert plain(Inputs({"input_ids": IDS, "attention_mask": ones})) is IDS
    assert plain(IDS) is IDS
    padded = Inputs({"input_ids": IDS, "attention_mask": MASK})
    typed = Inputs({"input_ids": IDS, "token_type_ids": TYPES})
    called = Inputs({"input_ids": IDS}, lambda model, tree: model(tree["input_ids"]))
    for inputs in (padded, typed, called):
        assert plain(inputs) is inputs


class TwoTowers(nn.Module):
    """Two inputs, one of which speaks much louder than the other."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 12), nn.Linear(4, 12), nn.Linear(12, 3)

    def forward(self, x, z=None):
        hidden = self.a(x)
        return self.c((hidden if z is None else hidden + self.b(z)).relu())


@pytest.mark.parametrize("form", ["tuple", "dict", "forward"])
def test_both_inputs_of_a_model_matter(form):
    generator = torch.Generator().manual_seed(0)
    x, z = (torch.randn(96, width, generator=generator) for width in (6, 4))
    labels = torch.randint(3, (96,), generator=generator)

    def shares(scale):
        torch.manual_seed(0)
        given = {
            "tuple": (x, scale * z, labels),
            "dict": {"x": x, "z": scale * z, "labels": labels},
            "forward": {"a": x, "b": scale * z, "labels": labels},
        }[form]
        call = (lambda model, batch: model(batch["a"], batch["b"])) if form == "forward" else None
        pruned = qprune.prune(
            TwoTowers(),
            in_batches(*given) if form == "tuple" else given,
            sparsity=0.5,
            method=qprune.Networkwise(stages=2, rounds=1, final_rounds=1, damping=1e-6),
            compensate=False,
            forward=call,
        )
        return {layer.name: layer.sparsity for layer in pruned.report.layers}

    loud, quiet = shares(10.0), shares(0.01)
    assert loud["b"] < loud["a"]
    assert loud["b"] < quiet["b"] - 0.2


@given(
    lengths=st.lists(st.integers(1, 6), min_size=2, max_size=12),
    size=st.integers(1, 5),
    left=st.booleans(),
    number=st.integers(1, 12),
    seed=st.integers(0, 2**16),
)
def test_rows_and_batches_of_sequences_say_the_same(lengths, size, left, number, seed):
    """Whatever is padded, and how far, every sample keeps its tokens, in its order."""
    generator = torch.Generator().manual_seed(seed)
    rows = [
        {
            "input_ids": torch.randint(5, 60, (length,), generator=generator),
            "attention_mask": torch.ones(length, dtype=torch.long),
            "labels": int(torch.randint(3, (), generator=generator)),
        }
        for length in lengths
    ]

    def batch(some):
        longest = max(len(row["input_ids"]) for row in some)
        edges = [(longest - len(row["input_ids"]), 0) for row in some]
        edges = edges if left else [edge[::-1] for edge in edges]
        made = {
            name: torch.stack(
                [functional.pad(row[name], edge) for row, edge in zip(some, edges, strict=True)]
            )
            for name in ("input_ids", "attention_mask")
        }
        return made | {"labels": torch.tensor([row["labels"] for row in some])}

    batches = [batch(rows[first : first + size]) for first in range(0, len(rows), size)]
    for given_data in (rows, iter(rows), batches, iter(batches)):
        data = as_calibration(given_data, Taking(masked), num_samples=number)
        made = data.inputs.tree
        assert len(data) == min(number, len(rows))
        assert data.labels.tolist() == [row["labels"] for row in rows[:number]]
        for index, row in enumerate(rows[:number]):
            seen = made["attention_mask"][index].bool()
            assert torch.equal(made["input_ids"][index][seen], row["input_ids"])
