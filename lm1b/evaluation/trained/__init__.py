"""Trained models: opened, asked, and handed on.

architecture.py        what model a checkpoint or an exported folder holds
scorer.py              -log P of every token of sequences, over the whole vocabulary, in windows of many positions
open.py                the one door to a checkpoint: chosen, leased, of the right vocabulary, verified
loading.py             a run's model in memory, which scores sentences
sampling_settings.py   how sentences are drawn
sampling.py            sentences drawn word by word
export.py              a model written as a folder that needs neither run nor tokens, with
export_facts.py        its config.json and
model_card.py          its README
exported.py            such a folder read again; `load_model` takes it, or a run
"""
