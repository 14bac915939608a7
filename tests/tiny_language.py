"""Language models of a few thousand random weights, made from configurations, not downloads."""

import random
import string

import torch

ALPHABET = string.ascii_lowercase + " ."


def llama(*, tied=False, seed=0, context=32):
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=len(ALPHABET) + 1,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(config).eval()


def tokenizer():
    """One token for each character."""
    import tokenizers
    import transformers

    words = tokenizers.models.WordLevel({"<s>": 0} | {c: i + 1 for i, c in enumerate(ALPHABET)})
    model = tokenizers.Tokenizer(words)
    model.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    model.decoder = tokenizers.decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token="<s>", eos_token="<s>", pad_token="<s>"
    )


def text(length, seed=0):
    return "".join(random.Random(seed).choices(ALPHABET, k=length))


def magnitude_mask(model, sparsity=0.5):
    """The decoder's matrices with the smaller part of each set to zero, and the mask of that."""
    mask = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "layers." in name:
            size = parameter.detach().abs().flatten()
            mask[name] = parameter.detach().abs() > size.kthvalue(int(sparsity * len(size))).values
            parameter.data *= mask[name]
    return mask
