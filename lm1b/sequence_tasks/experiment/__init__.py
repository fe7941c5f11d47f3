"""One cell on one task: from its sequences to results.json. In the order in which a module may import another:

network.py        the language model's own cells on sequences of vectors, with a linear read-out
trainer.py        one run: one seed, one learning rate, update by update, in one process
engine_run.py     the same over several ranks, under DeepSpeed
resumable_run.py  a run to a number of updates: saved, gone on with, never trained twice
provenance.py     where a result comes from
cell_runs.py      the protocol of a fair table: the learning rate by successive halving on dev, then every seed with it
smoke.py          every shipped task made so small that it takes seconds
ranks.py          the ranks that a launcher has started: how they meet, and how they end together
"""
