"""The data layer: from text, whatever its kind, to the batches of a training step. Its folders, in the order in which the data flows:

1. text/         what text there is, in chunks of whole tokenized lines: the benchmark, plain files, raw text, rows of a dataset
2. vocabulary/   which ids the text has: words by falling count, or pieces of words
3. preprocess/   the work that makes shards of ids from both, once, by any number of processes; a killed run goes on where it was
4. tokens/       what it leaves and training reads: a manifest and memory-mapped shards, in a folder or at a URL
5. batches.py    the shards as steps: a pure function of (seed, step)

Below all of them:

crew.py          the ranks that make a tokens directory together, without torch where there is one
receipts.py      whether a part of the work is done already

A worked example, with a vocabulary of words seen twice or more. The training file holds two sentences,

    the cat sat .
    the cat ran .

text/ gives them as one chunk. The first pass of preprocess/ numbers the chunk's own words in order of appearance and counts them: the=0,
cat=1, sat=2, .=3, </S>=4, ran=5; the text is 0 1 2 3 4 0 1 5 3 4. vocabulary/ ranks by count, ties by bytes: `.`=0, `</S>`=1, `<UNK>`=2
(2 words, sat and ran), `cat`=3, `the`=4, and last `<S>`=5, which never occurs. The second pass looks up those six words alone and
translates the numbers: the shard in tokens/ is 4 3 2 0 1 4 3 2 0 1 with sentence ends 5 and 10. It has 10 tokens to predict: 8 words and
2 sentence ends. With 2 lanes of 2 steps, batches.py gives lane 0 the targets (4 3), then (2 0), and lane 1 (1 4), then (3 2).

A module here imports from its own folder or one that stands before it: crew, receipts, text, vocabulary, tokens, batches, preprocess.
tests/test_layers.py sees to it.
"""
