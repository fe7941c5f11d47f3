"""One training step. In the order of what it does:

plan.py           what a step reads as far as no weight decides it: tokens, samples, which rank wants which rows
background.py     the thread beside the steps in which ranks exchange rows
rows.py           the table rows of a step, fetched ahead of it, and their gradients sent back behind it
training_step.py  rows, forward, backward, one all-reduce, the update or its skipping
schedule.py       the learning rate of an update
"""
