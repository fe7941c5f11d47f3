"""The tasks' sequences. In the order in which a module may import another:

task.py             what every task gives its trainer: three splits, of which any sequences can be had as a batch
generated.py        adding and multiplication, made when asked for
mnist.py            images, a pixel a step
speech_features.py  audio to 120 numbers every 10 ms
phone_labels.py     which phone is spoken from which sample to which
timit.py            whose utterances there are, and who is in which split
phones.py           the three together: phone frames
action_files.py     recordings of actions, in two layouts
actions.py          the same dealt to the splits by people, and cut into pieces
load.py             from a config's task to its data
"""
