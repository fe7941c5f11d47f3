"""What several tools share.

uses.py              a command with several uses
launching.py         where the repository is; starting ranks on this machine
results.py           where a file of figures comes from, as it says itself
counts.py            training counts of words, from a file or by Zipf's law
corpora.py           made-up text in the benchmark's layout
shapes.py            the models whose steps are measured, by name
batches.py           made-up batches for them
steps.py             a real training step on made-up tokens and tables
step_ranks.py        several ranks that take such steps, and what they report
step_worker.py       one of these ranks
turns.py             warm processes that take turns, so that what is compared is measured side by side
scored.py            the exact perplexity of a run in training
scored_training.py   a training on a budget, scored on the way
"""
