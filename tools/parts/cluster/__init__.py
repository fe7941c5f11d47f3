"""A cluster in a box: hosts on one machine that share nothing but a network and one folder. `tools/cluster.py` is its command.

cluster.py        the hosts and the network between them, up as long as a `with` block
host.py           one host: commands on it, its processes, its link, harm to it
init.py           the first process of a host
needs.py          what this machine must have
traffic.py        what goes over the links
formula.py        what should, by the scaling model
command.py        `run`: a command on the first host
demo.py           `demo`: from the text to a perplexity on two hosts
faults.py         `faults`: harm done to hosts, as a table
harm.py           one training that is harmed, and what became of it
step_traffic.py   `traffic`: bytes a step beside the formula, and what overlap hides
"""
