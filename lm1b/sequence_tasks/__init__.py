"""The two papers' other tasks (Le 2015, Talathi 2015): what their tables were made of, made again. In the order in which the data flows:

1. config.py     one cell on one task: one JSON file, strict and described
2. data/         the task's sequences in three splits: train is learned from, dev decides, test is looked at once
3. experiment/   a cell on them: the network, a small trainer, the search for a learning rate, several seeds -> results.json
4. papers/       both papers' tables with the kept results beside them -> papers.md; nothing is trained there
   dynamics.py   apart from all that: what untrained cells do to a state over time, and half precision to it

A worked example, `python launch/sequence_task.py --config configs/tasks/adding_irnn.json`. data/generated.py makes sequence 0 of train from
(seed 1, "train", 0): 150 steps of a value in (0, 1) and a mark. Steps 20 and 92 are marked, with the values 0.923 and 0.383, so the target
is 1.305. Always answering 1 costs 1/6 in squared error. An update takes the next 32 sequences of the epoch's order: x_TBD is [150, 32, 2],
the IRNN's last state [32, 100], and the read-out makes 32 numbers of it. experiment/cell_runs.py trains seed 0 for 2,500 updates with each
of 7 learning rates, for 5,000 with the better 3 and for 10,000 with the better 1, by the least error on dev: 0.0005. With that rate seeds 1
to 5 train for 10,000 updates, and each looks at test once, with the weights that were best on dev. The five errors, 0.00012 to 0.00021 with
a median of 0.00015, are in the IRNN's row of papers.md, once `tools/paper_results.py keep` has made a small file of results.json.

What one way has begun (one process, or ranks under DeepSpeed) the other goes on with. A module here imports from its own folder or one
that stands before it; tests/test_layers.py sees to it.
"""
