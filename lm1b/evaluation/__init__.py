"""What becomes of a run's checkpoints: a perplexity, a model to ask, a report.

trained/   a checkpoint, or a folder exported from one, as a model that scores sentences and draws them
scoring/   a text under a checkpoint: exact perplexities, written where the run's results are kept
report/    runs side by side, beside baselines and the published figures

A result is an `Evaluation` (lm1b/training/evaluations.py), since the training asks for the best of them too.
"""
