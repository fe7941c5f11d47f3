"""What a training tells while it runs. From the numbers of a step to whoever looks at them:

activations.py    mean activation and dead ReLUs of single steps
matmul_rate.py    what the machine does in matrix products alone: what a step's speed is measured against
metrics_line.py   sums over the steps between two lines of metrics.jsonl
run_log.py        config, environment, metrics and events, written into the run directory
board.py          the same numbers in TensorBoard
services.py       the same numbers at Weights & Biases or MLflow
step_progress.py  the line on the terminal
"""
