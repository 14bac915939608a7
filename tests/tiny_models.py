"""Tiny random transformers of many architectures, for the tests."""

import torch
import transformers

VOCABULARY, LENGTH = 64, 12
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}


def llama(**changes):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**_SIZES | changes))


def _qwen():
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**_SIZES, num_key_value_heads=1))


def _gemma():
    config = transformers.Gemma3TextConfig(
        **_SIZES, head_dim=8, num_key_value_heads=1, sliding_window=4, sliding_window_pattern=2
    )
    return transformers.Gemma3ForCausalLM(config)


def _opt():
    sizes = dict(_SIZES)
    config = transformers.OPTConfig(
        ffn_dim=sizes.pop("intermediate_size"), word_embed_proj_dim=8, **sizes
    )
    return transformers.OPTForCausalLM(config)


def _gpt2():
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=32
    )
    return transformers.GPT2LMHeadModel(config)


def _mixtral(**changes):
    config = transformers.MixtralConfig(
        **_SIZES, num_key_value_heads=1, num_local_experts=4, **changes
    )
    return transformers.MixtralForCausalLM(config)


_IMAGES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
    "num_labels": 3,
}


def vit(**changes):
    return transformers.ViTForImageClassification(transformers.ViTConfig(**_IMAGES | changes))


def _deit():
    return transformers.DeiTForImageClassification(transformers.DeiTConfig(**_IMAGES))


MODELS = {
    "llama": llama,
    "llama-grouped-query": lambda: llama(num_attention_heads=4, num_key_value_heads=2),
    "qwen2": _qwen,
    "gemma3": _gemma,
    "opt": _opt,
    "gpt2": _gpt2,
    "mixtral": _mixtral,
    "mixtral-top-1": lambda: _mixtral(num_experts_per_tok=1),
    "vit": vit,
    "deit": _deit,
}


def make(name):
    """The model, in evaluation mode, with the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS[name]().eval()


def samples(model, count=6, seed=0):
    """Token ids (count, LENGTH), or images."""
    generator = torch.Generator().manual_seed(seed)
    if hasattr(model.config, "image_size"):
        return torch.randn(count, 3, 8, 8, generator=generator)
    return torch.randint(VOCABULARY, (count, LENGTH), generator=generator)
