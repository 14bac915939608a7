"""Architectures of transformers from tiny configurations; forward and gradients, no downloads."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn
from zoo_entry import Data, Entry, called_by, ids, named, normal, padding

VOCABULARY, LENGTH = 13, 5
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "num_labels": 3,
}
EXPERTS = SIZES | {"num_key_value_heads": 1, "num_local_experts": 3, "num_experts_per_tok": 2}
IMAGES = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
    "num_labels": 3,
}
TEXT = named(input_ids=ids(LENGTH, below=VOCABULARY), attention_mask=padding(LENGTH))


def made(model: str, config: str, **sizes: Any):
    """A builder of one class from its configuration; weights large enough to bend the outputs."""
    sizes = {"initializer_range": 0.3} | sizes
    return lambda: getattr(transformers, model)(getattr(transformers, config)(**sizes))


def pixels(key: str = "pixel_values", size: int = 8) -> Data:
    return named(**{key: normal(3, size, size)})


def first_hidden(model: nn.Module, tree: dict) -> Any:
    """The mean of the last hidden states over positions."""
    return model(**tree).last_hidden_state.mean(1)


def encode_and_decode(model: nn.Module, tree: dict) -> Any:
    """Logits of an encoder-decoder, the input's last tokens as the decoder's."""
    return model(**tree, decoder_input_ids=tree["input_ids"][:, -3:]).logits


ENTRIES = (
    Entry(
        "bert",
        made("BertForSequenceClassification", "BertConfig", **SIZES),
        TEXT,
        kind="Bert",
        left_dense=(".*_embeddings.weight",),
    ),
    Entry(
        "distilbert",
        made(
            "DistilBertForTokenClassification",
            "DistilBertConfig",
            vocab_size=VOCABULARY,
            dim=8,
            hidden_dim=12,
            n_layers=1,
            n_heads=2,
            max_position_embeddings=16,
            num_labels=3,
        ),
        TEXT,
        kind="Bert",
        left_dense=(".*_embeddings.weight",),
    ),
    Entry(
        "roberta masked",
        made("RobertaForMaskedLM", "RobertaConfig", **SIZES),
        TEXT,
        kind="Bert",
        left_dense=(".*_embeddings.weight",),
    ),
    Entry(
        "albert",
        made(
            "AlbertForSequenceClassification",
            "AlbertConfig",
            **SIZES | {"num_hidden_layers": 2},
            embedding_size=6,
        ),
        TEXT,
        kind="shared layers",
        left_dense=(".*_embeddings.weight",),
    ),
    Entry(
        "deberta",
        made(
            "DebertaV2ForSequenceClassification",
            "DebertaV2Config",
            **SIZES,
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            share_att_key=True,
            position_biased_input=False,
            norm_rel_ebd="layer_norm",
        ),
        TEXT,
        kind="relative positions",
        path="mixed",
        left_dense=(".*_embeddings.weight",),
    ),
    Entry(
        "xlnet",
        made(
            "XLNetForSequenceClassification",
            "XLNetConfig",
            vocab_size=VOCABULARY,
            d_model=8,
            n_layer=1,
            n_head=2,
            d_inner=12,
            num_labels=3,
            use_mems_eval=False,
        ),
        TEXT,
        kind="relative positions",
        path="mixed",
        targets=("Linear", "re:.*rel_attn\\.[qkvor]"),
        left_dense=(".*word_embedding.weight", ".*mask_emb", ".*_bias", ".*seg_embed"),
    ),
    Entry(
        "gpt2",
        made(
            "GPT2LMHeadModel",
            "GPT2Config",
            vocab_size=VOCABULARY,
            n_embd=8,
            n_layer=1,
            n_head=2,
            n_positions=16,
            bos_token_id=0,
            eos_token_id=0,
        ),
        ids(LENGTH, below=VOCABULARY),
        kind="GPT-2",
        left_dense=(".*wte.weight", ".*wpe.weight"),
    ),
    Entry(
        "llama",
        made("LlamaForCausalLM", "LlamaConfig", **SIZES, num_key_value_heads=1),
        ids(LENGTH, below=VOCABULARY),
        kind="LLaMA",
        left_dense=(".*embed_tokens.weight",),
    ),
    Entry(
        "llama tied, padded",
        made("LlamaForCausalLM", "LlamaConfig", **SIZES, tie_word_embeddings=True),
        TEXT,
        kind="LLaMA",
        left_dense=(".*embed_tokens.weight",),
    ),
    Entry(
        "mixtral",
        made("MixtralForCausalLM", "MixtralConfig", **EXPERTS),
        ids(LENGTH, below=VOCABULARY),
        kind="experts of transformers",
        left_dense=(".*embed_tokens.weight", ".*gate.weight", ".*experts.*"),
        dtype=torch.float32,
    ),
    Entry(
        "mixtral with its experts",
        made("MixtralForCausalLM", "MixtralConfig", **EXPERTS, experts_implementation="eager"),
        ids(LENGTH, below=VOCABULARY),
        kind="experts of transformers",
        path="mixed",
        targets=("Linear", "re:.*experts\\..*"),
        left_dense=(".*embed_tokens.weight", ".*gate.weight"),
    ),
    Entry(
        "mamba",
        made(
            "MambaForCausalLM",
            "MambaConfig",
            vocab_size=VOCABULARY,
            hidden_size=8,
            state_size=3,
            num_hidden_layers=1,
            time_step_rank=2,
            tie_word_embeddings=False,
            use_mambapy=False,
        ),
        ids(LENGTH, below=VOCABULARY),
        kind="Mamba",
        path="mixed",
        left_dense=(".*embeddings.weight", ".*A_log"),
    ),
    Entry(
        "t5",
        made(
            "T5ForConditionalGeneration",
            "T5Config",
            vocab_size=VOCABULARY,
            d_model=8,
            d_kv=4,
            d_ff=12,
            num_layers=1,
            num_heads=2,
            relative_attention_num_buckets=4,
            decoder_start_token_id=0,
        ),
        called_by(encode_and_decode, TEXT),
        kind="encoder and decoder",
        left_dense=("shared.weight", ".*relative_attention_bias.weight"),
    ),
    Entry(
        "bart",
        made(
            "BartForConditionalGeneration",
            "BartConfig",
            vocab_size=VOCABULARY,
            d_model=8,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=12,
            decoder_ffn_dim=12,
            max_position_embeddings=16,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=1,
            decoder_start_token_id=1,
            forced_eos_token_id=None,
        ),
        called_by(encode_and_decode, TEXT),
        kind="encoder and decoder",
        left_dense=(".*shared.weight", ".*embed_positions.weight"),
    ),
    Entry(
        "vit",
        made("ViTForImageClassification", "ViTConfig", **IMAGES),
        pixels(),
        kind="image transformer",
        left_dense=(".*cls_token", ".*position_embeddings"),
    ),
    Entry(
        "beit",
        made("BeitForImageClassification", "BeitConfig", **IMAGES, use_relative_position_bias=True),
        pixels(),
        kind="image transformer",
        left_dense=(".*cls_token", ".*relative_position_bias_table"),
    ),
    Entry(
        "clip vision",
        made(
            "CLIPVisionModel",
            "CLIPVisionConfig",
            **{k: v for k, v in IMAGES.items() if k != "num_labels"},
        ),
        called_by(first_hidden, pixels()),
        kind="image transformer",
        left_dense=(".*position_embedding.weight",),
    ),
    Entry(
        "swin",
        made(
            "SwinForImageClassification",
            "SwinConfig",
            image_size=8,
            patch_size=2,
            embed_dim=4,
            depths=[2],
            num_heads=[2],
            window_size=2,
            num_labels=3,
        ),
        pixels(),
        kind="windows",
        left_dense=(".*relative_position_bias_table",),
    ),
    Entry(
        "swin, second version",
        made(
            "Swinv2ForImageClassification",
            "Swinv2Config",
            image_size=8,
            patch_size=2,
            embed_dim=4,
            depths=[1],
            num_heads=[2],
            window_size=2,
            num_labels=3,
        ),
        pixels(),
        kind="windows",
        path="mixed",
        left_dense=(".*logit_scale",),
    ),
    Entry(
        "convnext",
        made(
            "ConvNextForImageClassification",
            "ConvNextConfig",
            hidden_sizes=[4, 6],
            depths=[1, 1],
            num_stages=2,
            patch_size=2,
            num_labels=3,
        ),
        pixels(size=16),
        kind="image convolutions",
    ),
    Entry(
        "segformer",
        made(
            "SegformerForImageClassification",
            "SegformerConfig",
            num_encoder_blocks=2,
            depths=[1, 1],
            sr_ratios=[2, 1],
            hidden_sizes=[4, 6],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
            patch_sizes=[3, 3],
            strides=[2, 2],
            num_labels=3,
        ),
        pixels(),
        kind="image convolutions",
    ),
    Entry(
        "wav2vec2",
        made(
            "Wav2Vec2ForSequenceClassification",
            "Wav2Vec2Config",
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=1,
            num_attention_heads=2,
            conv_dim=(4, 4),
            conv_kernel=(4, 3),
            conv_stride=(3, 2),
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
            classifier_proj_size=6,
            num_labels=3,
            apply_spec_augment=False,
        ),
        named(input_values=normal(48)),
        kind="speech",
        path="mixed",
    ),
    Entry(
        "whisper encoder",
        lambda: (
            made(
                "WhisperModel",
                "WhisperConfig",
                vocab_size=VOCABULARY,
                d_model=8,
                encoder_layers=1,
                decoder_layers=1,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                encoder_ffn_dim=12,
                decoder_ffn_dim=12,
                num_mel_bins=4,
                max_source_positions=6,
                max_target_positions=8,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=1,
                decoder_start_token_id=1,
            )().encoder
        ),
        called_by(first_hidden, named(input_features=normal(4, 12))),
        kind="speech",
        left_dense=(".*embed_positions.weight",),
    ),
)
