"""A cluster in a box: hosts on one machine that share nothing but a network and one folder. `tools/cluster.py` is its command."""
