"""Runs side by side: report.md, curves.png and report.html, a page that needs nothing else.

records.py            a run as its folder tells it
ngram.py              unigram and Kneser-Ney trigram
baselines.py          their perplexities of the texts that a run was scored on, counted on its own tokens and kept
published.py          figures of the literature, each with what one has to know before comparing
perplexity_table.py   the table of perplexities, beside the baselines
breakdown.py          where a text's nats go, how sure a perplexity is, whether two runs differ
details.py            tables of that for what was scored last
settings.py           settings, environment and commands, side by side
curves.py             curves against words, steps and time
sections.py           all parts in order, as Markdown and places for charts
page.py               Markdown and charts as one HTML page
report.py             from run directories to the files of the report
"""
