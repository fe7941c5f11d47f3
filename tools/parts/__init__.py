"""What the commands of tools/ are made of: NAME/ has the parts of tools/NAME.py.

harness/          what several of them share
benchmark/        speed
check_hosts/      other hosts, asked over ssh
cluster/          a cluster in a box
fault_rig/        faults, and what becomes of them
learning_curve/   perplexity over time
paper_results/    the papers' tables
scaling_model/    many ranks, predicted
"""
