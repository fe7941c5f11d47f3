"""From a corpus to a complete tokens directory: every core, of one machine or many, and a killed run goes on where it was.

1. preprocess.py      the seven steps, from top to bottom
2. ledger.py          what one rank knows meanwhile: which chunks are counted, which shards are written, and whose they are
3. passes.py          the two passes over a chunk of text, each run in a worker process and remembered on disk
4. official_check.py  whether this is the official benchmark, and whether what was counted is what is published
5. publish.py         how what was made takes the place of what was there before
6. disk.py            what to say when the folder cannot be written to, or is full
"""
