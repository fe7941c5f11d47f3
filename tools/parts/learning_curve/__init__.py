"""What `tools/learning_curve.py` is made of.

compare.py   when a perplexity was reached, and whether two groups of seeds learn alike
"""
