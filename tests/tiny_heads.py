"""Checkpoints of a few thousand random weights with heads of every kind, and text for them."""

import random

import tiny_models
import torch
import transformers

VOCABULARY, CLS, SEP, MASK, PAD = 64, 60, 61, 62, 63
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 40,
    "pad_token_id": PAD,
    # Large weights: small ones give outputs that do not depend on the text.
    "initializer_range": 0.4,
}
_BART = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "max_position_embeddings": 40,
    "init_std": 0.4,
    "pad_token_id": PAD,
    "bos_token_id": CLS,
    "eos_token_id": SEP,
    "decoder_start_token_id": SEP,
    "forced_eos_token_id": SEP,
}


def _bert(kind, **changes):
    return kind(transformers.BertConfig(**_SIZES | changes))


def _llama(kind, **changes):
    return kind(transformers.LlamaConfig(**_SIZES | {"num_key_value_heads": 1} | changes))


def _t5():
    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=16,
        d_ff=24,
        d_kv=8,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=PAD,
        pad_token_id=PAD,
        initializer_factor=4.0,
    )
    return transformers.T5ForConditionalGeneration(config)


def _resnet():
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=3
    )
    return transformers.ResNetForImageClassification(config)


def _swin():
    config = transformers.SwinConfig(
        image_size=8, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2
    )
    return transformers.SwinForImageClassification(config)


MODELS = {
    "bert-sequence": lambda: _bert(transformers.BertForSequenceClassification, num_labels=3),
    "bert-labels": lambda: _bert(
        transformers.BertForSequenceClassification,
        num_labels=4,
        problem_type="multi_label_classification",
    ),
    "bert-tokens": lambda: _bert(transformers.BertForTokenClassification, num_labels=5),
    "bert-masked": lambda: _bert(transformers.BertForMaskedLM),
    "roberta-masked": lambda: transformers.RobertaForMaskedLM(
        transformers.RobertaConfig(**_SIZES | {"pad_token_id": 1})
    ),
    # No padding token: transformers itself refuses batches of it.
    "llama-reward": lambda: _llama(
        transformers.LlamaForSequenceClassification, num_labels=1, pad_token_id=None
    ),
    "llama-tokens": lambda: _llama(transformers.LlamaForTokenClassification, num_labels=5),
    "t5": _t5,
    "bart": lambda: transformers.BartForConditionalGeneration(transformers.BartConfig(**_BART)),
    "vit": lambda: tiny_models.vit(initializer_range=0.4),
    "resnet": _resnet,
    "swin": _swin,
}


def make(name, seed=0):
    torch.manual_seed(seed)
    return MODELS[name]().eval()


def tokenizer():
    """Words w0 to w59, and special tokens around a text."""
    import tokenizers

    special = {"[CLS]": CLS, "[SEP]": SEP, "[MASK]": MASK, "[PAD]": PAD}
    words = {f"w{i}": i for i in range(CLS)} | special
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model,
        unk_token="w0",
        mask_token="[MASK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


def words(number, seed=0):
    generator = random.Random(seed)
    return " ".join(f"w{generator.randrange(CLS)}" for _ in range(number))


def save(name, folder):
    """The dense model, saved with its tokenizer."""
    model = make(name)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return model
