"""What `tools/fault_rig.py` is made of: faults, the runs they strike, and what is compared afterwards."""
