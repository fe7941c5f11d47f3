"""What text there is, as chunks of whole tokenized lines. In the order in which the data flows:

1. sources.py      the door: the corpus that a config names, made into tokenized files first where it is none
2. benchmark.py    the 1 Billion Word benchmark: its layout in a folder or its archive, its published sums and counts (official_md5.txt)
   archive.py      the members of a .tar.gz from front to back, whoever made it
3. raw_text.py     raw text into tokenized files: sentences split, tokenized, deduplicated, shuffled, cut into splits
   moses.py        how a paragraph is split and tokenized
   news_sample.py  real news from a package registry, raw
4. rows.py         rows that Hugging Face `datasets` reads, into the same files
5. corpus.py       all of them as a `Corpus` that gives `TextChunk`s, one for each token shard to come
6. tokenized.py    the bytes of a chunk, checked, and seen as an array of words without copying them one by one
"""
