"""What `tools/check_hosts.py` is made of.

remote.py   lm1b/host_facts.py run on another host, over ssh
"""
