"""One file per runnable thing; each defines `get_config(preset)`.

The preset stands after a colon, `--config=configs/gpt2.py:small`, and any key
can be set with `--config.section.key=value`. Every config starts from
`skeleton.py`, where every key is listed with what it means.
"""
