"""Small networks of torch's own layers, and of the ways in which people call them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint
from zoo_entry import NUM_SAMPLES, Entry, Net, both, called_by, ids, named, normal, padding

VOCABULARY = 11


def head(width: int) -> nn.Linear:
    return nn.Linear(width, 3)


def pooled(*body: nn.Module, width: int) -> nn.Module:
    """Layers over positions, then a mean over all positions and a Linear."""
    return Net(
        lambda net, x: net.head(net.body(x).flatten(2).mean(2)),
        body=nn.Sequential(*body),
        head=head(width),
    )


LINEAR = (
    Entry(
        "linear",
        lambda: nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 3, bias=False)),
        normal(8),
        kind="Linear",
    ),
    Entry(
        "linear over two dimensions of tokens",
        lambda: Net(
            lambda net, x: net.head(net.inner(x).tanh().mean((1, 2))),
            inner=nn.Linear(5, 6),
            head=head(6),
        ),
        normal(3, 4, 5),
        kind="Linear",
    ),
    Entry(
        "linear called by keyword",
        lambda: Net(
            lambda net, x: net.head(input=net.inner(input=x).tanh()),
            inner=nn.Linear(8, 6),
            head=head(6),
        ),
        normal(8),
        kind="Linear",
    ),
)


class Plain(nn.Linear):
    """A subclass that changes nothing."""


class Standardised(nn.Linear):
    """Rows of the weight are standardised before use."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean(1, keepdim=True)
        return functional.linear(x, weight / (weight.std(1, keepdim=True) + 0.1), self.bias)


class Quantised(nn.Linear):
    """A fake quantised weight with a straight-through gradient."""

    def forward(self, x: Tensor) -> Tensor:
        rounded = (self.weight * 16).round() / 16
        return functional.linear(x, self.weight + (rounded - self.weight).detach(), self.bias)


class Same(nn.Conv2d):
    """The "same" padding of image networks, computed in forward."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(functional.pad(x, (0, 1, 0, 1)), self.weight, self.bias)


SUBCLASSES = (
    Entry(
        "subclass of linear",
        lambda: nn.Sequential(Plain(8, 12), nn.Tanh(), head(12)),
        normal(8),
        kind="subclass",
    ),
    Entry(
        "subclass that pads its images",
        lambda: pooled(Same(2, 4, 2), nn.Tanh(), width=4),
        normal(2, 5, 5),
        kind="subclass",
    ),
    Entry(
        "subclass with a standardised weight",
        lambda: nn.Sequential(Standardised(8, 12), nn.Tanh(), head(12)),
        normal(8),
        kind="weight computed in forward",
        path="mixed",
    ),
    Entry(
        "subclass with a quantised weight",
        lambda: nn.Sequential(Quantised(8, 12), nn.Tanh(), head(12)),
        normal(8),
        kind="weight computed in forward",
        path="mixed",
    ),
)


def _u_net() -> nn.Module:
    def run(net: Net, x: Tensor) -> Tensor:
        fine = net.fine(x).relu()
        coarse = net.down(fine).relu()
        joined = torch.cat([fine, net.up(coarse)], 1)
        return net.out(joined).relu().flatten(2).mean(2)

    return Net(
        run,
        fine=nn.Conv2d(2, 4, 3, padding=1),
        down=nn.Conv2d(4, 6, 2, stride=2),
        up=nn.ConvTranspose2d(6, 4, 2, stride=2),
        out=nn.Conv2d(8, 3, 1),
    )


def _squeeze_excite() -> nn.Module:
    def run(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x).tanh()
        share = net.excite(net.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return net.head((x * share).mean((2, 3)))

    return Net(
        run,
        stem=nn.Conv2d(2, 6, 3),
        squeeze=nn.Conv2d(6, 3, 1),
        excite=nn.Conv2d(3, 6, 1),
        head=head(6),
    )


def _residual() -> nn.Module:
    def run(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x)
        for _ in range(2):
            x = x + net.second(net.first(x.relu()).relu_())
        return net.head(x.mean((2, 3)))

    return Net(
        run,
        stem=nn.Conv2d(2, 4, 3),
        first=nn.Conv2d(4, 4, 3, padding=1),
        second=nn.Conv2d(4, 4, 1),
        head=head(4),
    )


CONVOLUTIONS = (
    Entry(
        "conv1d",
        lambda: pooled(nn.Conv1d(3, 5, 3, stride=2, padding=1), nn.Tanh(), width=5),
        normal(3, 9),
        kind="Conv1d",
    ),
    Entry(
        "conv1d with groups and circular padding",
        lambda: pooled(
            nn.Conv1d(4, 6, 3, groups=2, dilation=2, padding=2, padding_mode="circular"),
            nn.Tanh(),
            width=6,
        ),
        normal(4, 9),
        kind="Conv1d",
    ),
    Entry(
        "conv2d",
        lambda: pooled(nn.Conv2d(2, 5, 3, stride=(1, 2), padding="valid"), nn.Tanh(), width=5),
        normal(2, 6, 7),
        kind="Conv2d",
    ),
    Entry(
        "conv2d dilated with reflected padding",
        lambda: pooled(
            nn.Conv2d(2, 5, 3, dilation=2, padding=2, padding_mode="reflect"), nn.Tanh(), width=5
        ),
        normal(2, 6, 7),
        kind="Conv2d",
    ),
    Entry(
        "conv2d on images with channels last",
        lambda: pooled(nn.Conv2d(4, 5, 3, padding=1), nn.Tanh(), width=5).to(
            memory_format=torch.channels_last
        ),
        lambda g: torch.randn(NUM_SAMPLES, 4, 5, 5, generator=g).to(
            memory_format=torch.channels_last
        ),
        kind="Conv2d",
    ),
    Entry(
        "grouped conv2d",
        lambda: pooled(nn.Conv2d(4, 6, 3, groups=2, stride=2), nn.Tanh(), width=6),
        normal(4, 7, 7),
        kind="grouped convolution",
    ),
    Entry(
        "depthwise separable",
        lambda: pooled(
            nn.Conv2d(4, 8, 3, groups=4), nn.ReLU6(inplace=True), nn.Conv2d(8, 5, 1), width=5
        ),
        normal(4, 6, 6),
        kind="grouped convolution",
    ),
    Entry(
        "conv3d",
        lambda: pooled(nn.Conv3d(2, 4, (2, 3, 3), stride=(1, 2, 1)), nn.Tanh(), width=4),
        normal(2, 4, 5, 5),
        kind="Conv3d",
        path="mixed",
    ),
    Entry(
        "conv transpose 1d",
        lambda: pooled(nn.ConvTranspose1d(3, 4, 3, stride=2, output_padding=1), nn.Tanh(), width=4),
        normal(3, 6),
        kind="ConvTranspose",
        path="mixed",
    ),
    Entry(
        "conv transpose 2d with groups",
        lambda: pooled(nn.ConvTranspose2d(4, 6, 3, groups=2, padding=1), nn.Tanh(), width=6),
        normal(4, 4, 5),
        kind="ConvTranspose",
        path="mixed",
    ),
    Entry(
        "conv transpose 3d",
        lambda: pooled(nn.ConvTranspose3d(2, 3, 2), nn.Tanh(), width=3),
        normal(2, 3, 3, 3),
        kind="ConvTranspose",
        path="mixed",
    ),
    Entry("u-net", _u_net, normal(2, 6, 6), kind="U-net", path="mixed"),
    Entry("squeeze and excite", _squeeze_excite, normal(2, 6, 6), kind="squeeze and excite"),
    Entry("residual with shared blocks", _residual, normal(2, 6, 6), kind="residual"),
    Entry(
        "pixel shuffle",
        lambda: pooled(nn.Conv2d(2, 8, 3), nn.PixelShuffle(2), nn.Tanh(), width=2),
        normal(2, 5, 5),
        kind="pixel shuffle",
    ),
    Entry(
        "batch norm",
        lambda: pooled(
            nn.Conv2d(2, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(inplace=True), width=5
        ),
        normal(2, 6, 6),
        kind="norm",
    ),
    Entry(
        "group norm and instance norm",
        lambda: pooled(
            nn.Conv2d(2, 6, 3), nn.GroupNorm(2, 6), nn.InstanceNorm2d(6), nn.SiLU(True), width=6
        ),
        normal(2, 6, 6),
        kind="norm",
    ),
    Entry(
        "layer norm over two dimensions",
        lambda: pooled(nn.Conv1d(2, 4, 3), nn.LayerNorm((4, 5)), nn.Tanh(), width=4),
        normal(2, 7),
        kind="norm",
        left_dense=(r"body\.1\.(weight|bias)",),
    ),
)


class Recurrent(nn.Module):
    """A recurrent network over (m, T, F), batch first or not, then a Linear on all outputs."""

    def __init__(self, kind: type[nn.RNNBase], *, batch_first: bool = True, **options) -> None:
        super().__init__()
        self.rnn = kind(5, 6, batch_first=batch_first, **options)
        width = options.get("proj_size", 6) * (2 if options.get("bidirectional") else 1)
        self.head = head(width)
        self.dim = 1 if batch_first else 0

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x.transpose(0, 1 - self.dim))
        return self.head(out.mean(self.dim))


def cells(cell: nn.RNNCellBase) -> nn.Module:
    def run(net: Net, x: Tensor) -> Tensor:
        state = None
        for t in range(x.shape[1]):
            state = net.cell(x[:, t]) if state is None else net.cell(x[:, t], state)
        return net.head(state[0] if isinstance(state, tuple) else state)

    return Net(run, cell=cell, head=head(6))


def _unequal_lengths() -> nn.Module:
    def run(net: Net, x: Tensor, mask: Tensor) -> Tensor:
        rows = pack_padded_sequence(
            net.embed(x), mask.sum(1).cpu(), batch_first=True, enforce_sorted=False
        )
        _, state = net.rnn(rows)
        return net.head(state[-1])

    return Net(run, embed=nn.Linear(3, 5), rnn=nn.GRU(5, 6, batch_first=True), head=head(6))


SEQUENCES = normal(4, 5)
RECURRENT = (
    Entry("lstm", lambda: Recurrent(nn.LSTM), SEQUENCES, kind="LSTM", path="mixed"),
    Entry(
        "lstm time-major in two layers",
        lambda: Recurrent(nn.LSTM, batch_first=False, num_layers=2),
        SEQUENCES,
        kind="LSTM",
        path="mixed",
    ),
    Entry(
        "lstm in both directions with a projection",
        lambda: Recurrent(nn.LSTM, bidirectional=True, proj_size=4),
        SEQUENCES,
        kind="LSTM",
        path="mixed",
    ),
    Entry("gru", lambda: Recurrent(nn.GRU), SEQUENCES, kind="GRU", path="mixed"),
    Entry(
        "gru time-major",
        lambda: Recurrent(nn.GRU, batch_first=False),
        SEQUENCES,
        kind="GRU",
        path="mixed",
    ),
    Entry(
        "gru on packed sequences",
        _unequal_lengths,
        both(normal(5, 3), padding(5)),
        kind="GRU",
        path="mixed",
    ),
    Entry("rnn", lambda: Recurrent(nn.RNN), SEQUENCES, kind="RNN", path="mixed"),
    Entry("lstm cells", lambda: cells(nn.LSTMCell(5, 6)), SEQUENCES, kind="cell", path="mixed"),
    Entry("gru cells", lambda: cells(nn.GRUCell(5, 6)), SEQUENCES, kind="cell", path="mixed"),
    Entry("rnn cells", lambda: cells(nn.RNNCell(5, 6)), SEQUENCES, kind="cell", path="mixed"),
)


def _self_attention() -> nn.Module:
    return Net(
        lambda net, x: net.head(net.attention(x, x, x, need_weights=False)[0].mean(1)),
        attention=nn.MultiheadAttention(6, 2, batch_first=True),
        head=head(6),
    )


def _cross_attention() -> nn.Module:
    def run(net: Net, x: Tensor, memory: Tensor) -> Tensor:
        memory = memory.transpose(0, 1)
        return net.head(net.attention(x.transpose(0, 1), memory, memory)[0].mean(0))

    return Net(
        run,
        attention=nn.MultiheadAttention(6, 2, kdim=4, vdim=4, add_bias_kv=True),
        head=head(6),
    )


class FunctionalAttention(nn.Module):
    """Attention that hands the weights of its Linears to `linear`, as Swin and BEiT do."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.project, self.head = nn.Linear(6, 18), nn.Linear(6, 6), head(6)

    def forward(self, x: Tensor) -> Tensor:
        qkv = functional.linear(x, self.qkv.weight, self.qkv.bias)
        q, k, v = qkv.unflatten(2, (3, 2, 3)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(functional.linear(mixed, self.project.weight).mean(1))


TOKENS = normal(5, 6)
ATTENTION = (
    Entry("multi-head attention", _self_attention, TOKENS, kind="attention", path="mixed"),
    Entry(
        "cross attention time-major",
        _cross_attention,
        both(TOKENS, normal(3, 4)),
        kind="attention",
        path="mixed",
        left_dense=("attention.bias_k", "attention.bias_v"),
    ),
    Entry(
        "attention by functions",
        FunctionalAttention,
        TOKENS,
        kind="weight given to a function",
    ),
    Entry(
        "transformer encoder layer time-major",
        lambda: Net(
            lambda net, x: net.head(net.layer(x.transpose(0, 1)).mean(0)),
            layer=nn.TransformerEncoderLayer(6, 2, 8),
            head=head(6),
        ),
        TOKENS,
        kind="transformer",
        path="mixed",
    ),
    Entry(
        "transformer encoder",
        lambda: Net(
            lambda net, x: net.head(net.encoder(x).mean(1)),
            encoder=nn.TransformerEncoder(
                nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, norm_first=False), 2
            ),
            head=head(6),
        ),
        TOKENS,
        kind="transformer",
        path="mixed",
    ),
    Entry(
        "transformer decoder",
        lambda: Net(
            lambda net, x, memory: net.head(net.decoder(x, memory).mean(1)),
            decoder=nn.TransformerDecoder(
                nn.TransformerDecoderLayer(6, 2, 8, batch_first=True, activation="gelu"), 1
            ),
            head=head(6),
        ),
        both(TOKENS, normal(3, 6)),
        kind="transformer",
        path="mixed",
    ),
)


def normed(norm) -> nn.Module:
    return nn.Sequential(norm(nn.Linear(8, 6)), nn.Tanh(), head(6))


class Symmetric(nn.Module):
    """A parametrization by a function of the same shape: the weight's symmetric part."""

    def forward(self, weight: Tensor) -> Tensor:
        return (weight + weight.T) / 2


def _symmetric() -> nn.Module:
    inner = nn.Linear(6, 6)
    parametrize.register_parametrization(inner, "weight", Symmetric())
    return nn.Sequential(inner, nn.Tanh(), head(6))


class Factors(nn.Module):
    """A weight that is the product of two matrices of low rank."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left @ right

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return weight[:, :2], weight[:2]


def _factors() -> nn.Module:
    inner = nn.Linear(8, 6)
    parametrize.register_parametrization(inner, "weight", Factors(), unsafe=True)
    return nn.Sequential(inner, nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), head(5))


def _adaptive_softmax() -> nn.Module:
    return Net(
        lambda net, x: net.softmax.log_prob(net.inner(x).tanh()),
        inner=nn.Linear(5, 6),
        softmax=nn.AdaptiveLogSoftmaxWithLoss(6, 8, cutoffs=[3, 5], div_value=2.0),
    )


OTHERS = (
    Entry(
        "bilinear",
        lambda: Net(
            lambda net, x, z: net.head(net.bilinear(x, z).tanh()),
            bilinear=nn.Bilinear(4, 3, 6),
            head=head(6),
        ),
        both(normal(4), normal(3)),
        kind="Bilinear",
        path="mixed",
        targets=("Linear", "Bilinear"),
    ),
    Entry(
        "bilinear left dense",
        lambda: Net(
            lambda net, x, z: net.head(net.bilinear(x, z).tanh()),
            bilinear=nn.Bilinear(4, 3, 6),
            head=head(6),
        ),
        both(normal(4), normal(3)),
        kind="Bilinear",
        left_dense=("bilinear.weight",),
    ),
    Entry(
        "embedding",
        lambda: Net(
            lambda net, x: net.head(net.embed(x).tanh().mean(1)),
            embed=nn.Embedding(VOCABULARY, 6, padding_idx=3),
            head=head(6),
        ),
        ids(4),
        kind="Embedding",
        path="mixed",
        targets=("Linear", "Embedding"),
    ),
    Entry(
        "embedding left dense",
        lambda: Net(
            lambda net, x: net.head(net.inner(net.embed(x)).tanh().mean(1)),
            embed=nn.Embedding(VOCABULARY, 6),
            inner=nn.Linear(6, 6),
            head=head(6),
        ),
        ids(4),
        kind="Embedding",
        left_dense=("embed.weight",),
    ),
    Entry(
        "embedding bag",
        lambda: Net(
            lambda net, x: net.head(net.embed(x).tanh()),
            embed=nn.EmbeddingBag(VOCABULARY, 6, mode="mean"),
            head=head(6),
        ),
        ids(4),
        kind="EmbeddingBag",
        path="mixed",
        targets=("Linear", "EmbeddingBag"),
    ),
    Entry(
        "embedding bag with sparse gradients",
        lambda: Net(
            lambda net, x: net.head(net.embed(x).tanh()),
            embed=nn.EmbeddingBag(VOCABULARY, 6, mode="sum", sparse=True),
            head=head(6),
        ),
        ids(4),
        kind="EmbeddingBag",
        path="mixed",
        targets=("Linear", "EmbeddingBag"),
    ),
    Entry("adaptive softmax", _adaptive_softmax, normal(5), kind="adaptive softmax"),
    Entry(
        "weight norm",
        lambda: normed(parametrizations.weight_norm),
        normal(8),
        kind="parametrization",
        path="mixed",
        targets=("Linear", "0.parametrizations.weight.original1"),
    ),
    Entry(
        "spectral norm",
        lambda: normed(parametrizations.spectral_norm),
        normal(8),
        kind="parametrization",
        path="mixed",
    ),
    Entry(
        "symmetric weight",
        _symmetric,
        normal(6),
        kind="parametrization",
        left_dense=("0.parametrizations.weight.original",),
    ),
    Entry(
        "weight of two factors",
        _factors,
        normal(8),
        kind="parametrization of another shape",
        left_dense=(r"0\.parametrizations\.weight\.original[01]",),
    ),
    Entry(
        "spectral norm everywhere",
        lambda: nn.Sequential(
            parametrizations.spectral_norm(nn.Linear(8, 6)),
            nn.Tanh(),
            parametrizations.spectral_norm(head(6)),
        ),
        normal(8),
        kind="parametrization by hooks",
        path="slow",
    ),
    Entry(
        "weight norm by hooks",
        lambda: normed(_old_weight_norm),
        normal(8),
        kind="parametrization by hooks",
        left_dense=("0.weight_v",),
    ),
    Entry(
        "spectral norm by hooks",
        lambda: normed(nn.utils.spectral_norm),
        normal(8),
        kind="parametrization by hooks",
        path="mixed",
    ),
)


def _old_weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer)


class Multiply(torch.autograd.Function):
    """A product with its own derivative, and none in forward mode."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        return grad @ weight, grad.T @ x


class Reversed(torch.autograd.Function):
    """The identity, whose gradient is reversed."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return -0.5 * grad


def _tied_linears() -> nn.Module:
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    return Net(
        lambda net, x: net.head(net.second(net.first(x).tanh()).tanh()),
        first=first,
        second=second,
        head=head(6),
    )


def _tied_head() -> nn.Module:
    embed, out = nn.Embedding(VOCABULARY, 6), nn.Linear(6, VOCABULARY, bias=False)
    out.weight = embed.weight
    return Net(
        lambda net, x: net.out(net.inner(net.embed(x)).tanh()),
        embed=embed,
        inner=nn.Linear(6, 6),
        out=out,
    )


def _autoencoder() -> nn.Module:
    return Net(
        lambda net, x: functional.linear(net.encode(x).tanh(), net.encode.weight.T),
        encode=nn.Linear(6, 4),
    )


def _einsum() -> nn.Module:
    return Net(
        lambda net, x: net.head(
            torch.einsum("mti,hio->mtho", x, net.mix).tanh().mean(1).flatten(1)
        ),
        mix=nn.Parameter(torch.randn(2, 5, 3)),
        head=head(6),
    )


def _low_rank() -> nn.Module:
    return Net(
        lambda net, x: net.head((net.base(x) + x @ net.a @ net.b).tanh()),
        base=nn.Linear(6, 6),
        a=nn.Parameter(torch.randn(6, 2)),
        b=nn.Parameter(torch.randn(2, 6)),
        head=head(6),
    )


def _in_sequence(reentrant: bool) -> nn.Module:
    """A checkpointed block behind an embedding."""
    return Net(
        lambda net, x: net.head(
            checkpoint(net.block, net.embed(x), use_reentrant=reentrant).mean(1)
        ),
        embed=nn.Embedding(VOCABULARY, 5),
        block=nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh()),
        head=head(6),
    )


def _frozen_trunk() -> nn.Module:
    def run(net: Net, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = net.trunk(x).tanh()
        return net.head(net.inner(x).tanh())

    return Net(run, trunk=nn.Linear(8, 6), inner=nn.Linear(6, 6), head=head(6))


def _stopped() -> nn.Module:
    """A teacher and a pupil of one weight: one use counts, the other is detached."""
    return Net(
        lambda net, x: net.head((net.inner(x) + net.inner(x.flip(1)).detach()).tanh()),
        inner=nn.Linear(8, 6),
        head=head(6),
    )


FUNCTIONS = (
    Entry(
        "product with the transposed weight",
        lambda: Net(
            lambda net, x: net.head((x @ net.inner.weight.T).tanh()),
            inner=nn.Linear(8, 6, bias=False),
            head=head(6),
        ),
        normal(8),
        kind="weight given to a function",
        path="mixed",
    ),
    Entry(
        "weight called as a module and by a function",
        lambda: Net(
            lambda net, x: net.head(functional.linear(net.inner(x).tanh(), net.inner.weight)),
            inner=nn.Linear(6, 6),
            head=head(6),
        ),
        normal(6),
        kind="weight given to a function",
    ),
    Entry(
        "custom function of a weight",
        lambda: Net(
            lambda net, x: net.head(Multiply.apply(x, net.inner.weight).tanh()),
            inner=nn.Linear(8, 6, bias=False),
            head=head(6),
        ),
        normal(8),
        kind="custom function",
        path="mixed",
    ),
    Entry(
        "custom function between layers",
        lambda: Net(
            lambda net, x: net.head(Reversed.apply(net.inner(x)).tanh()),
            inner=nn.Linear(8, 6),
            head=head(6),
        ),
        normal(8),
        kind="custom function",
    ),
    Entry("two linears of one weight", _tied_linears, normal(6), kind="tied"),
    Entry(
        "tied head",
        _tied_head,
        ids(4),
        kind="tied",
        left_dense=("embed.weight",),
    ),
    Entry(
        "tied head as a target",
        _tied_head,
        ids(4),
        kind="tied",
        path="mixed",
        targets=("Linear", "embed.weight"),
    ),
    Entry(
        "autoencoder of one weight",
        _autoencoder,
        normal(6),
        kind="one weight, transposed",
        path="slow",
    ),
    Entry(
        "slice of a weight",
        lambda: Net(
            lambda net, x: net.head(functional.linear(x, net.inner.weight[:5, 2:]).tanh()),
            inner=nn.Linear(10, 8),
            head=head(5),
        ),
        normal(8),
        kind="part of a weight",
        path="mixed",
    ),
    Entry(
        "functional call",
        lambda: Net(
            lambda net, x: net.head(
                functional_call(net.inner, {"weight": net.inner.weight.exp()}, (x,)).tanh()
            ),
            inner=nn.Linear(8, 6),
            head=head(6),
        ),
        normal(8),
        kind="weight computed in forward",
        path="mixed",
    ),
    Entry(
        "list of parameters",
        lambda: Net(
            lambda net, x: net.head((x @ net.both[0]).tanh() @ net.both[1]),
            both=nn.ParameterList([torch.randn(8, 6), torch.randn(6, 6)]),
            head=head(6),
        ),
        normal(8),
        kind="list of parameters",
        path="mixed",
        targets=("Linear", "both"),
    ),
    Entry(
        "parameter in an einsum",
        _einsum,
        normal(4, 5),
        kind="bare parameter",
        path="mixed",
        targets=("Linear", "mix"),
    ),
    Entry(
        "low-rank parameters left dense",
        _low_rank,
        normal(6),
        kind="bare parameter",
        left_dense=("a", "b"),
    ),
    Entry(
        "low-rank parameters",
        _low_rank,
        normal(6),
        kind="bare parameter",
        path="mixed",
        targets=("Linear", "re:[ab]"),
    ),
    Entry(
        "checkpointed block",
        lambda: _in_sequence(False),
        ids(4),
        kind="checkpoint",
        left_dense=("embed.weight",),
    ),
    Entry(
        "checkpointed block, reentrant",
        lambda: _in_sequence(True),
        ids(4),
        kind="checkpoint",
        left_dense=("embed.weight",),
    ),
    Entry(
        "trunk without gradients",
        _frozen_trunk,
        normal(8),
        kind="no gradient",
        left_dense=("trunk.weight",),
    ),
    Entry("use without a gradient", _stopped, normal(8), kind="no gradient"),
)


def _folded_windows() -> nn.Module:
    """Images cut into windows: the rows of the block are (image, window)."""

    def run(net: Net, x: Tensor) -> Tensor:
        m = len(x)
        windows = x.unflatten(1, (2, 2)).flatten(0, 1)
        return net.head(net.inner(windows).tanh().mean(1)).unflatten(0, (m, 2)).mean(1)

    return Net(run, inner=nn.Linear(5, 6), head=head(6))


def _stacked_views() -> nn.Module:
    """Two views of every image, all first views before all second ones."""

    def run(net: Net, x: Tensor) -> Tensor:
        first, second = net.body(torch.cat([x, 2 * x.flip(3)])).mean((2, 3)).tanh().chunk(2)
        return net.head(first) * net.head(second).sigmoid()

    return Net(run, body=nn.Conv2d(2, 5, 3), head=head(5))


def _time_major_rows() -> nn.Module:
    def run(net: Net, x: Tensor) -> Tensor:
        rows = x.transpose(0, 1).reshape(-1, x.shape[2])
        rows = net.second(net.first(rows).tanh()).tanh()
        return net.head(rows.unflatten(0, (x.shape[1], -1)).mean(0))

    return Net(run, first=nn.Linear(5, 6), second=nn.Linear(6, 6), head=head(6))


def _positions() -> nn.Module:
    """A bias made by a small network from a table, the same for all samples (SwinV2)."""

    def run(net: Net, x: Tensor) -> Tensor:
        bias = net.bias_out(net.bias_in(net.table).tanh())
        return net.head((net.inner(x) + bias[: x.shape[1]]).tanh().mean(1))

    return Net(
        run,
        table=nn.Parameter(torch.randn(NUM_SAMPLES, 2)),
        bias_in=nn.Linear(2, 4),
        bias_out=nn.Linear(4, 6),
        inner=nn.Linear(5, 6),
        head=head(6),
    )


def _one_by_one() -> nn.Module:
    """A loop over the samples of the batch."""
    return Net(
        lambda net, x: net.head(torch.stack([net.inner(row).tanh() for row in x])),
        inner=nn.Linear(5, 6),
        head=head(6),
    )


def _ragged_rows() -> nn.Module:
    """Only real tokens pass the layers, all samples' in one long row of them."""

    def run(net: Net, x: Tensor, mask: Tensor) -> Tensor:
        real = mask.bool()
        out = x.new_zeros(*x.shape[:2], 6).masked_scatter(
            real[..., None], net.inner(x[real]).tanh()
        )
        return net.head(out.sum(1))

    return Net(run, inner=nn.Linear(5, 6), head=head(6))


def _sorted_rows() -> nn.Module:
    """Samples sorted by their first number before a layer, and put back after it."""

    def run(net: Net, x: Tensor) -> Tensor:
        order = x[:, 0].argsort()
        return net.head(net.inner(x[order]).tanh()[order.argsort()])

    return Net(run, inner=nn.Linear(5, 6), head=head(6))


def _in_order(generator: torch.Generator) -> Tensor:
    """Samples that come sorted by their first number, but for the last ones."""
    x = torch.randn(NUM_SAMPLES, 5, generator=generator)
    x[:-4, 0] = x[:-4, 0].sort().values
    return x


def _within_vmap() -> nn.Module:
    """Samples by a vmap of the model's own."""
    return Net(
        lambda net, x: torch.func.vmap(lambda row: net.head(net.inner(row).tanh()))(x),
        inner=nn.Linear(5, 6),
        head=head(6),
    )


class Experts(nn.Module):
    """A mixture: every sample goes to one expert, chosen by a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 3)
        self.experts = nn.ModuleList(nn.Linear(6, 5) for _ in range(3))
        self.head = head(5)

    def forward(self, x: Tensor) -> Tensor:
        shares, choice = self.gate(x).softmax(1).max(1)
        out = x.new_zeros(len(x), 5)
        for i, expert in enumerate(self.experts):
            rows = torch.nonzero(choice == i)[:, 0]
            out = out.index_add(0, rows, shares[rows, None] * expert(x[rows]))
        return self.head(out.tanh())


def _dead_branch() -> nn.Module:
    return Net(
        lambda net, x: net.head(net.inner(x).tanh()),
        inner=nn.Linear(8, 6),
        auxiliary=nn.Linear(8, 4),
        head=head(6),
    )


def _product_with_zero() -> nn.Module:
    """A gate that is shut for every sample: used, and its gradient is zero."""
    return Net(
        lambda net, x: net.head(net.inner(x).tanh() + net.gate * net.shut(x)),
        inner=nn.Linear(8, 6),
        shut=nn.Linear(8, 6),
        gate=nn.Parameter(torch.zeros(())),
        head=head(6),
    )


ROWS = (
    Entry("folded windows", _folded_windows, normal(4, 5), kind="rows that are no samples"),
    Entry(
        "stacked views",
        _stacked_views,
        normal(2, 5, 5),
        kind="rows that are no samples",
        path="mixed",
    ),
    Entry(
        "time-major rows",
        _time_major_rows,
        normal(4, 5),
        kind="rows that are no samples",
        path="mixed",
    ),
    Entry(
        "biases of positions",
        _positions,
        normal(4, 5),
        kind="rows of no sample",
        path="mixed",
        left_dense=("table",),
    ),
    Entry("loop over samples", _one_by_one, normal(5), kind="loop over samples", path="mixed"),
    Entry(
        "rows of real tokens",
        _ragged_rows,
        both(normal(4, 5), padding(4)),
        kind="ragged rows",
        path="mixed",
    ),
    Entry("sorted rows", _sorted_rows, _in_order, kind="ragged rows", path="mixed"),
    Entry("vmap within the model", _within_vmap, normal(5), kind="vmap", path="slow"),
    Entry("mixture of experts", Experts, normal(6), kind="experts", path="mixed"),
    Entry(
        "layer that is never called",
        _dead_branch,
        normal(8),
        kind="dead branch",
        left_dense=("auxiliary.weight",),
    ),
    Entry(
        "branch times zero",
        _product_with_zero,
        normal(8),
        kind="dead branch",
        left_dense=("shut.weight",),
    ),
)


@dataclass
class Answer:
    """What a model of today returns."""

    logits: Tensor
    hidden: Tensor


def returning(make) -> nn.Module:
    """A network that returns ``make(logits, hidden)``."""

    def run(net: Net, x: Tensor):
        hidden = net.inner(x).tanh()
        return make(net.head(hidden), hidden)

    return Net(run, inner=nn.Linear(8, 6), head=head(6))


def precise(dtype: torch.dtype) -> nn.Module:
    return pooled(
        nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(inplace=True), nn.Conv2d(4, 5, 1), width=5
    ).to(dtype)


def _hooked() -> nn.Module:
    """A hook that changes what goes in, and one that changes what comes out."""
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), head(6))
    model[0].register_forward_pre_hook(lambda _, args: (args[0].flip(1),))
    model[0].register_forward_hook(lambda _, args, output: output * 2)
    return model


def _turned(layer: nn.Linear) -> nn.Linear:
    """The weight stored column by column."""
    layer.weight = nn.Parameter(layer.weight.detach().T.contiguous().T)
    return layer


def _cast() -> nn.Module:
    def run(net: Net, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = net.inner(x).tanh()
        return net.head(hidden.float())

    return Net(run, inner=nn.Linear(8, 6), head=head(6))


def _frozen_flags() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), head(6))
    model[0].requires_grad_(False)
    return model


def _empty_parameter() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        none = nn.Linear(8, 0)
    return Net(
        lambda net, x: net.head(torch.cat([x, net.none(x)], 1).tanh()), none=none, head=head(8)
    )


def _two_linears(first: Tensor, second: Tensor) -> nn.Module:
    model = Net(
        lambda net, x: net.head(net.second(net.first(x).tanh()).tanh()),
        first=nn.Linear(6, 6),
        second=nn.Linear(6, 6),
        head=head(6),
    )
    model.first.weight, model.second.weight = nn.Parameter(first), nn.Parameter(second)
    return model


def _overlapping() -> nn.Module:
    flat = torch.randn(66)
    return _two_linears(flat[:36].view(6, 6), flat[30:].view(6, 6))


def _transposed() -> nn.Module:
    weight = torch.randn(6, 6)
    return _two_linears(weight, weight.T)


def _eight_bits() -> nn.Module:
    inner = nn.Linear(8, 6)
    weight = inner.weight.detach().to(torch.float8_e4m3fn)
    inner.weight = nn.Parameter(weight, requires_grad=False)
    return Net(
        lambda net, x: net.head(functional.linear(x, net.inner.weight.float()).tanh()),
        inner=inner,
        head=head(6),
    )


def _quantised() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(
            nn.Sequential(nn.Linear(8, 6), nn.ReLU(), head(6)), {nn.Linear}
        )


INTERFACES = (
    Entry(
        "dict of outputs",
        lambda: returning(lambda logits, hidden: {"out": logits, "hidden": hidden}),
        called_by(lambda model, x: model(x)["out"], normal(8)),
        kind="outputs",
    ),
    Entry(
        "tuple of outputs",
        lambda: returning(lambda logits, hidden: (logits, hidden)),
        called_by(lambda model, x: model(x)[0], normal(8)),
        kind="outputs",
    ),
    Entry(
        "dataclass of outputs",
        lambda: returning(Answer),
        normal(8),
        kind="outputs",
    ),
    Entry(
        "two inputs",
        lambda: Net(
            lambda net, x, z: net.head((net.first(x) + net.second(z)).tanh()),
            first=nn.Linear(4, 6),
            second=nn.Linear(3, 6),
            head=head(6),
        ),
        both(normal(4), normal(3)),
        kind="inputs",
    ),
    Entry(
        "inputs by name",
        lambda: Net(
            lambda net, *, tokens, image: net.head(
                (net.embed(tokens).mean(1) + net.conv(image).mean((2, 3))).tanh()
            ),
            embed=nn.Embedding(VOCABULARY, 6),
            conv=nn.Conv2d(2, 6, 3),
            head=head(6),
        ),
        named(tokens=ids(4), image=normal(2, 5, 5)),
        kind="inputs",
        left_dense=("embed.weight",),
    ),
    Entry(
        "double precision",
        lambda: precise(torch.float64),
        normal(2, 5, 5, dtype=torch.float64),
        kind="precision",
    ),
    Entry(
        "bfloat16",
        lambda: precise(torch.bfloat16),
        normal(2, 5, 5, dtype=torch.bfloat16),
        kind="precision",
        dtype=torch.bfloat16,
        tolerance=4e-2,
    ),
    Entry(
        "float16",
        lambda: precise(torch.float16),
        normal(2, 5, 5, dtype=torch.float16),
        kind="precision",
        dtype=torch.float16,
        tolerance=5e-3,
    ),
    Entry(
        "in-place activations",
        lambda: nn.Sequential(
            nn.Linear(8, 6),
            nn.ReLU(inplace=True),
            nn.Linear(6, 6),
            nn.Hardtanh(inplace=True),
            head(6),
        ),
        normal(8),
        kind="in place",
    ),
    Entry(
        "inputs changed in place",
        lambda: Net(
            lambda net, x: net.head(net.inner(x.mul_(0.5)).tanh()),
            inner=nn.Linear(8, 6),
            head=head(6),
        ),
        normal(8),
        kind="in place",
    ),
    Entry("hooks of the model's own", _hooked, normal(8), kind="hooks"),
    Entry(
        "weights that are not contiguous",
        lambda: nn.Sequential(_turned(nn.Linear(8, 6)), nn.Tanh(), _turned(head(6))),
        normal(8),
        kind="memory",
    ),
    Entry(
        "autocast within the model",
        _cast,
        normal(8),
        kind="autocast",
        path="mixed",
        dtype=torch.float32,
        tolerance=4e-2,
    ),
    Entry("frozen flags", _frozen_flags, normal(8), kind="frozen"),
    Entry("empty parameter", _empty_parameter, normal(8), kind="empty"),
    Entry(
        "lazy linear",
        lambda: nn.Sequential(nn.LazyLinear(6), nn.Tanh(), head(6)),
        normal(8),
        kind="refused",
        refused="(?i)lazy|uninitiali[sz]ed",
    ),
    Entry(
        "quantised",
        _quantised,
        normal(8),
        kind="quantised",
        refused="(?i)quanti",
    ),
    Entry(
        "data parallel",
        lambda: nn.DataParallel(nn.Sequential(nn.Linear(8, 6), nn.Tanh(), head(6))),
        normal(8),
        kind="wrapper",
        refused="model.module",
    ),
    Entry(
        "parameters that overlap",
        _overlapping,
        normal(6),
        kind="shared memory",
        refused="'first.weight' and 'second.weight' share memory",
    ),
    Entry(
        "two parameters of one memory, transposed",
        _transposed,
        normal(6),
        kind="shared memory",
        refused="'first.weight' and 'second.weight' share memory",
    ),
    Entry(
        "eight-bit floats",
        _eight_bits,
        normal(8),
        kind="quantised",
        refused="'inner.weight' is torch.float8_e4m3fn, quantised",
    ),
    Entry(
        "complex weights",
        lambda: Net(
            lambda net, x: net.head(net.inner(x.to(torch.complex64)).abs()),
            inner=nn.Linear(8, 6, dtype=torch.complex64),
            head=head(6),
        ),
        normal(8),
        kind="complex",
        refused="'inner.weight' is torch.complex64, complex",
    ),
    Entry(
        "scripted",
        lambda: torch.jit.script(nn.Sequential(nn.Linear(8, 6), nn.Tanh(), head(6))),
        normal(8),
        kind="refused",
        refused="(?i)script|jit",
    ),
)

ENTRIES = (
    *LINEAR,
    *SUBCLASSES,
    *CONVOLUTIONS,
    *RECURRENT,
    *ATTENTION,
    *OTHERS,
    *FUNCTIONS,
    *ROWS,
    *INTERFACES,
)
