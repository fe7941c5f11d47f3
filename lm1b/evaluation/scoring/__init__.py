"""A checkpoint's exact perplexity of a text.

texts.py              a split or text files as one array of tokens, with their counts; official files known by their MD5
perplexity.py         a checkpoint opened and asked (trained/), its nats summed in float64 and divided once: an `Evaluation`
spectrum.py           spectral radii of its recurrent weights, kept with each result
token_nats.py         the nats of every token, kept for the report's breakdowns
ranks.py              who scores: this process, or the ranks that a launcher has started
checkpoint_board.py   what TensorBoard shows of a checkpoint that has been scored
evaluator.py          all of this for one run and one text
watch.py              every new checkpoint, beside the training
overrides.py          what launch/evaluate.py may ask for other than the run's config does
"""
