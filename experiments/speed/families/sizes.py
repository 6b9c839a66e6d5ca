"""Small models of the families, ours and the peer's, the same in both.

Each is a preset with what makes it small, and the peer's class with what makes
it the same model: as many parameters, batches of the same shapes. Nothing drops
anything, and both clip and step by AdamW.
"""

TOKENS = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)

# name: (config, preset, what is changed, peer's configuration class, model
# class, its keywords)
FAMILIES = {
  "bert": (
    "bert", "base",
    {
      "model.layers": 6, "model.dim": 384, "model.heads": 6,
      "model.mlp_dim": 1536, "model.vocab": 8192, "model.dropout": 0.0,
      "model.pooler": False, "model.next_sentence": False,
      "model.position_length": 128, "objective.next_sentence": False,
      "data.task.next_sentence": False, "data.length": 128, "data.batch": 16,
      "data.tokenizer_vocab": 4096,
    },
    "BertConfig", "BertForMaskedLM",
    dict(
      TOKENS, vocab_size=8192, hidden_size=384, num_hidden_layers=6,
      num_attention_heads=6, intermediate_size=1536,
      max_position_embeddings=128,
    ),
  ),
  "t5": (
    "t5", "small",
    {
      "model.dim": 256, "model.encoder_layers": 4, "model.decoder_layers": 4,
      "model.heads": 4, "model.head_dim": 64, "model.mlp_dim": 1024,
      "model.vocab": 8192, "data.task.first_sentinel": 8191,
      "data.length": 254, "data.batch": 8, "data.tokenizer_vocab": 4096,
      "objective.z_loss": 0.0, "objective.chunk": None,
    },
    "T5Config", "T5ForConditionalGeneration",
    dict(
      vocab_size=8192, d_model=256, d_kv=64, d_ff=1024, num_layers=4,
      num_decoder_layers=4, num_heads=4, dropout_rate=0.0,
      decoder_start_token_id=0, pad_token_id=0,
    ),
  ),
  "vit": (
    "vit", "s16",
    {
      "model.layers": 6, "model.dim": 192, "model.heads": 3,
      "model.mlp_dim": 768, "data.batch": 8,
    },
    "ViTConfig", "ViTForImageClassification",
    dict(
      TOKENS, hidden_size=192, num_hidden_layers=6, num_attention_heads=3,
      intermediate_size=768, num_labels=1000,
    ),
  ),
  "resnet": (
    "resnet", "r18",
    {"model.image_size": 112, "data.image_size": 112, "data.batch": 8},
    "ResNetConfig", "ResNetForImageClassification",
    dict(
      layer_type="basic", depths=[2, 2, 2, 2],
      hidden_sizes=[64, 128, 256, 512], num_labels=1000,
    ),
  ),
  "clip": (
    "clip", "b32",
    {
      "model.patch": 32, "model.image_dim": 192, "model.image_heads": 3,
      "model.image_layers": 6, "model.image_mlp_dim": 768,
      "model.text_dim": 128, "model.text_heads": 2, "model.text_layers": 6,
      "model.text_mlp_dim": 512, "model.text_length": 32, "model.vocab": 8192,
      "model.text_end": 8191, "model.embed_dim": 128, "data.start": 8190,
      "data.length": 32, "data.batch": 16, "data.tokenizer": "bytes",
    },
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
    "whisper", "tiny",
    {
      "model.vocab": 8192, "model.start_token": 8191,
      "model.position_length": 64, "data.target_length": 64, "data.batch": 1,
      "objective.chunk": None,
    },
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
# Of both, so that the work of a step is the same.
ADAMW = dict(learning_rate=1e-4, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1)
CLIP = 1.0
