"""The model: from the rows of a step's words to its loss. In the order in which the data flows:

1. tables.py            vocabulary tables, cut by rows over the ranks, with sparse Adagrad
   huge_pages.py        their memory
   row_requests.py      which rows a step needs, and which of them each rank asks of each other
   row_formats.py       how rows are written into the bytes that travel
   row_exchange.py      rows from their owners to the rank that asks, and gradients back
2. sampler.py           which words stand in for the whole vocabulary in a step's loss
3. initial_weights.py   initial weights, each from a key of its parameter's name
   recurrent.py         IRNN, np-RNN, ReLU and tanh RNN, LSTM: a stack of layers
   recurrent_cpu.py     one such layer on a CPU, as large products and little else
   dropout.py           dropout whose mask is a function of where an activation is
   language_model.py    rows, layers, projection, loss: what DeepSpeed trains
4. sampled_softmax.py   from hidden vectors to nats over the sampled words
   full_softmax.py      over all words, each rank its own: exact evaluation, and an exact training loss
   adaptive.py          the adaptive softmax
   output_layer.py      exact probabilities of words, when a trained model is asked
5. products.py          matrix products at the machine's own rate
   blocks.py            logits in blocks that stay in a cache
   kernels.py           whether Triton's kernels are taken
   triton_kernels.py    those kernels
   costs.py             parameters and work a word, from a config alone

A worked example: two lanes of two steps with words (5 9), (9 2) and targets (9 2), (2 7), and samples 0, 1, 2. The input needs the rows
of 2, 5, 9, each once (`input_rows_UD`, U = 3; positions 1 2 / 2 0), the output those of 0, 1, 2, 7, 9. The layers turn the input rows at
those positions [T, B, D] into hidden_TBP, and the softmax scores each of the N = 4 hidden vectors against its target and the three
samples, except that word 2, where it is the target itself, is not scored as a sample too. The gradient of each distinct row goes back to
its owner once.
"""
