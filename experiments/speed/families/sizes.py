"""The peers' models that are ours of aigc_jax/presets/timed.py.

Of each the class of its configuration, that of the model, and the keywords that
make it the same one: as many parameters, batches of the same shapes. Those of
diffusers and timm are in `pictures`.
"""

# What is compared, and ours of aigc_jax/presets/timed.py that it is.
OURS = {
  "dit": "dit_small", "unet": "unet_small", "vae_sd": "vae_sd_small",
  "vit_timm": "vit_small",
}  # fmt: skip

TOKENS = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)

# name: (configuration class, model class, keywords)
FAMILIES = {
  "bert": (
    "BertConfig", "BertForMaskedLM",
    dict(
      TOKENS, vocab_size=8192, hidden_size=384, num_hidden_layers=6,
      num_attention_heads=6, intermediate_size=1536,
      max_position_embeddings=128,
    ),
  ),
  "t5": (
    "T5Config", "T5ForConditionalGeneration",
    dict(
      vocab_size=8192, d_model=256, d_kv=64, d_ff=1024, num_layers=4,
      num_decoder_layers=4, num_heads=4, dropout_rate=0.0,
      decoder_start_token_id=0, pad_token_id=0,
    ),
  ),
  "vit": (
    "ViTConfig", "ViTForImageClassification",
    dict(
      TOKENS, hidden_size=192, num_hidden_layers=6, num_attention_heads=3,
      intermediate_size=768, num_labels=1000,
    ),
  ),
  "resnet": (
    "ResNetConfig", "ResNetForImageClassification",
    dict(
      layer_type="basic", depths=[2, 2, 2, 2],
      hidden_sizes=[64, 128, 256, 512], num_labels=1000,
    ),
  ),
  "clip": (
    "CLIPConfig", "CLIPModel",
    dict(
      projection_dim=128,
      vision_config=dict(
        hidden_size=192, num_hidden_layers=6, num_attention_heads=3,
        intermediate_size=768, patch_size=32, image_size=224,
      ),
      text_config=dict(
        vocab_size=8192, hidden_size=128, num_hidden_layers=6,
        num_attention_heads=2, intermediate_size=512,
        max_position_embeddings=32, bos_token_id=8190, eos_token_id=8191,
        pad_token_id=1,
      ),
    ),
  ),
  "whisper": (
    "WhisperConfig", "WhisperForConditionalGeneration",
    dict(
      vocab_size=8192, d_model=384, encoder_layers=4, decoder_layers=4,
      encoder_attention_heads=6, decoder_attention_heads=6,
      encoder_ffn_dim=1536, decoder_ffn_dim=1536, max_target_positions=64,
      pad_token_id=8190, bos_token_id=8190, eos_token_id=8190,
      decoder_start_token_id=8191, dropout=0.0, use_cache=False,
    ),
  ),
}  # fmt: skip

OURS |= {name: f"{name}_small" for name in FAMILIES}
