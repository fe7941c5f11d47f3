"""Checkpoints without pickle, for any number of ranks, ZeRO stage and precision. From the step's tensors to a copy elsewhere:

snapshot.py      the tables as they were at one moment, while training goes on changing them
tensor_file.py   safetensors written front to back and hashed on the way, read by ranges of rows
saving.py        files written behind the steps, the manifest last, committed in one instant on all ranks
checkpoint.py    one as it lies on disk: verified, read, cut for another number of ranks
retention.py     which ones are kept: newest, every so many steps, best, whatever is being read
mirrored_run.py  a run's copy at a URL, and a fresh host's run directory made from it
mirror.py        how that copy is written behind the steps
"""
