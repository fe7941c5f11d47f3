"""Published figures of the 1 Billion Word benchmark, each with what one has to know before laying it beside one's own."""

from __future__ import annotations

from typing import NamedTuple

SAME_PROTOCOL = "same count: every word and every `</S>`, `<UNK>` a word"
ANOTHER_COUNT = "**another denominator**: "


class PublishedFigure(NamedTuple):
    """One line of the literature. perplexity: a word, on heldout-00000."""

    model: str
    perplexity: float
    source: str
    protocol: str


PUBLISHED = [
    PublishedFigure("Kneser-Ney 5-gram", 67.6, "Chelba et al. 2013", SAME_PROTOCOL),
    PublishedFigure("LSTM 512", 68.8, "Le et al. 2015 (arXiv 1504.00941)", "its own recipe; 60 hours on 32 replicas"),
    PublishedFigure("IRNN 4 x 512", 69.4, "Le et al. 2015", "its own recipe"),
    PublishedFigure("IRNN 1 x 1024, projection 512", 70.2, "Le et al. 2015", "its own recipe; figure recalled, not re-read"),
    PublishedFigure("tanh RNN 4 x 512", 71.8, "Le et al. 2015", "its own recipe; figure recalled, not re-read"),
    PublishedFigure("tanh RNN 1 x 1024, projection 512", 72.5, "Le et al. 2015", "its own recipe; figure recalled, not re-read"),
    PublishedFigure("LSTM-512-512", 54.1, "Jozefowicz et al. 2016 (arXiv 1602.02410)", SAME_PROTOCOL),
    PublishedFigure("LSTM-1024-512", 48.2, "Jozefowicz et al. 2016", SAME_PROTOCOL),
    PublishedFigure("LSTM-2048-512", 43.7, "Jozefowicz et al. 2016", SAME_PROTOCOL + "; re-runs: 48.7 after 5 epochs, 44.7 after 10"),
    PublishedFigure("LSTM-2048, adaptive softmax", 43.9, "Grave et al. 2017 (arXiv 1609.04309)", SAME_PROTOCOL),
    PublishedFigure("BIGLSTM 2 x 8192-1024", 30.6, "Jozefowicz et al. 2016", SAME_PROTOCOL),
    PublishedFigure("BIGLSTM with CNN inputs", 30.0, "Jozefowicz et al. 2016", SAME_PROTOCOL),
    PublishedFigure("Transformer-XL large", 21.8, "Dai et al. 2019", ANOTHER_COUNT + "also counts an almost free `<S>` a sentence"),
    PublishedFigure("Transformer-XL base", 23.5, "Dai et al. 2019", ANOTHER_COUNT + "also counts an almost free `<S>` a sentence"),
    PublishedFigure("LSTM-2048-256, Adam", 39.98, "rdspring1/PyTorch_GBW_LM", ANOTHER_COUNT + "never predicts a sentence's first word"),
]
