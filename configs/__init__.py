"""One file per runnable thing; each defines `get_config(preset)`.

The preset stands after a colon, `--config=configs/gpt2.py:small`, and any key
can be set with `--config.section.key=value`. Every config starts from
`aigc_jax.presets.skeleton()`; README.md beside this file lists every key with
what it means.
"""
