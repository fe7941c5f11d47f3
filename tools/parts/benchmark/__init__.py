"""What `tools/benchmark.py` is made of.

everything.py        the benchmark itself: all parts, one object of figures
cases.py             which training steps are measured on a CPU and on a GPU, and the goals
training.py          a worker that takes these steps
plain.py             its baseline, as a user of PyTorch would write it
profiled.py          a step's parts by the profiler
thread_time.py       CPU time by thread
machine.py           what this machine can do at best
checkpoints.py       one checkpoint saved and read back, beside the disk's own rate
log_cost.py          what the logs cost a step
evaluation.py        exact evaluation
resume.py            from the command to the first step
report.py            the figures as text
report_gpu.py        those of a GPU
preprocessing.py     `preprocess`: by phase, as a command, its memory
wordlevel.py         its baseline, Hugging Face's tokenizer
checkpoint_cost.py   `checkpoints`: what saving costs a training of several ranks
table_memory.py      `memory`: a rank's, against the number of ranks
"""
