"""Which ids text has. In the order in which the data flows:

1. build.py           from the training split's counted words to the vocabulary that the config asks for
   piece_training.py  pieces of words, learnt from those counts
2. vocabulary.py      what every vocabulary does: spell words as ids, give them back, say where a word begins
   words.py           one id a word; words outside are `<UNK>`
   pieces.py          one id or more a word: a SentencePiece model
3. files.py           a vocabulary's files in a folder: which there are, whether they are whole, and what is in them
"""
