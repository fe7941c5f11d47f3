"""What `tools/paper_results.py` is made of.

keep.py              `keep`: what runs have found, as small files
dynamics.py          `dynamics`: states over time, and half precision
language_models.py   `language-models`: a table of cells on the same text
"""
