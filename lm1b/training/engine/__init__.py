"""The ranks and DeepSpeed, which no other folder imports. In the order in which a training needs them:

process_group.py  the ranks meet, with a time limit for whoever does not answer
settings.py       what DeepSpeed is told, made from the config
engine.py         a module under DeepSpeed: backward, the guarded update, weights and optimizer state by name
"""
