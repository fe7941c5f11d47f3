"""Token shards: what preprocessing leaves and training reads. In the order in which the data flows:

1. manifest.py    what a tokens directory says of itself, and what must hold before any of it is believed
2. arrays.py      the .npy files: written with their checksums, mapped without being believed
3. directory.py   shards written and read: `TokenDirectory`, `TokenSplit`
   summary.py     what a directory holds, in words
4. verified.py    which files this machine has hashed before, so that they need not be read again
   unchanged.py   whether the corpus that the config names is still the one the shards were made of
5. remote.py      the same directory at a URL: slices of its arrays
   pages.py       its files page by page (64 KiB each), verified, fetched ahead
   page_cache.py  the pages on this machine's disk, bounded in all
"""
