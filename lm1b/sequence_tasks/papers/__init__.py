"""papers.md: both papers' tables with the kept results beside them. Nothing is trained here.

In the order in which a module may import another:

kept_result.py      a result as the report asks of it: what it is on, what to call it, how its seeds ended
kept.py             the same short enough to live in the repository: made, written, read
published.py        what the two papers report and claim, row by row
verdicts.py         what may be said of two cells, a claim or a figure, in one sentence each
tables.py           results in tables: beside a paper's rows, on stand-in data
sensitivity.py      what the learning rate does to a cell: a table and sentences
plots.py            all pictures
language_models.py  the section on the language model, from language_models.json
dynamics.py         the section on states over time and half precision: dynamics.json, and results in bf16 beside float32
report.py           the whole of it
"""
