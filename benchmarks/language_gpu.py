"""Stage 1 on a GPU at the shape of a 7B LLaMA: seconds by layer, peak memory, beside SparseGPT.

    python -m benchmarks.language_gpu --layers 2              # projected to 32 layers
    python -m benchmarks.language_gpu --layers 32             # from end to end

Weights are random (normal, rows and columns of uneven size), tokens go in groups whose embeddings
share directions, so that inputs are correlated as they are in a trained network. The model waits
in the host's memory and one decoder layer at a time is on the card. Seed 0.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import qprune

#: Decoder layers of a 7B LLaMA.
LAYERS = 32
VOCABULARY, GROUPS = 4096, 64


def model_of(layers: int, width: int, inner: int, device: str) -> LlamaForCausalLM:
    """A LLaMA with random weights in float16, in the host's memory; made on ``device``."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 128),
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    )
    generator = torch.Generator(device).manual_seed(0)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.half().to_empty(device=device)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
            elif "embed" in name:
                shared = normal(GROUPS, width)[torch.arange(VOCABULARY, device=device) % GROUPS]
                parameter.copy_(shared + 0.5 * normal(VOCABULARY, width))
            else:
                rows, columns = parameter.shape
                uneven = (0.3 * normal(rows, 1)).exp() * (0.3 * normal(1, columns)).exp()
                parameter.copy_(normal(rows, columns) * uneven * columns**-0.5)
    # Buffers were made without content, too.
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config)
    return model.eval().cpu()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--inner", type=int, default=11008)
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--sparsity", type=float, default=0.7)
    parser.add_argument("--methods", nargs="*", default=["sparsegpt", "reconstruct"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--offload", default="device", help="where activations wait")
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    shape = (arguments.sequences, arguments.length)
    windows = torch.randint(VOCABULARY, shape, generator=generator)
    cuda = arguments.device == "cuda"
    print(torch.cuda.get_device_name() if cuda else "on the host", flush=True)
    for method in arguments.methods:
        model = model_of(arguments.layers, arguments.width, arguments.inner, arguments.device)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        spent: dict[str, float] = defaultdict(float)

        def tell(step: qprune.Step, method: str = method) -> None:
            for done in step.layers:
                spent[done.name.rpartition(".")[2]] += done.seconds  # noqa: B023 - called at once
                print(f"{method} {done.name} {done.shape}: {done.seconds:.2f} s, "
                      f"error {done.error:.4f}", flush=True)  # fmt: skip

        began = time.perf_counter()
        rows, place = method, {"device": arguments.device, "offload": arguments.offload}
        qprune.prune(
            model,
            windows,
            method=qprune.Layerwise(rows, shares=None, **place),
            # Counts as published: Wanda's by row, the others' by matrix.
            budget=(qprune.PerRow if rows == "wanda" else qprune.PerLayer)(alone=True),
            sparsity=arguments.sparsity,
            observe=tell,
        )
        seconds = time.perf_counter() - began
        peak = torch.cuda.max_memory_allocated() / 1e9 if cuda else float("nan")
        each = ", ".join(f"{name} {s / arguments.layers:.1f}" for name, s in spent.items())
        print(f"{method}: {seconds:.0f} s for {arguments.layers} layers, projected to {LAYERS}: "
              f"{seconds / arguments.layers * LAYERS / 60:.1f} min; at most {peak:.1f} GB on the "
              f"card; seconds a matrix: {each}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
