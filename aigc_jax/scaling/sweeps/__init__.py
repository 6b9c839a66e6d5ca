"""Sweeps: planned (points), kept (on disk), run (here or by a launcher), told.

plan (what there is to run) -> ledger (what is on disk of it) -> launch (how a
point is started), work (which ones, and what became of them), slurm (as an
array), progress (what is shown); ladder (writes a sweep)
"""
