"""What `tools/scaling_model.py` is made of.

measured.py      one rank's measured step, as the model reads it
rows.py          how many table rows a step touches
collectives.py   what a collective sends, and how long it takes
layouts.py       a step under three ways to lay out the tables
loopback.py      this machine's own network, measured
report.py        tables and picture
"""
