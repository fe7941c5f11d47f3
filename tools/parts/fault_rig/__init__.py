"""What `tools/fault_rig.py` is made of: faults, the runs they strike, and what is compared afterwards.

workplace.py   the folder of a call: corpus, configs, undisturbed runs
launches.py    processes of the program, started, watched and ended
victim.py      an entry point of the program with one fault in it
points.py      where a fault can strike inside a process
strikes.py     faults that strike a training
chains.py      one training that is struck again and again
processes.py   kills of evaluation and preprocessing
damage.py      files damaged
outside.py     disks, folders left over, numbers that are not finite
compare.py     what a disturbed run left: is it sound, how many of its bytes are wrong?
table.py       what became of each trial, and the table
"""
