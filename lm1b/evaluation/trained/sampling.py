"""Sentences drawn from a model, word by word.

1. The prompt's words go through the recurrent layers from zero state after `</S>`, as in scoring.
2. The next word's logits, over the whole vocabulary in float32, are divided by the temperature; of the words only the `top_k` likeliest
   are kept, and of those the fewest that hold `top_p` of the probability (nucleus sampling, Holtzman et al. 2020).
3. A uniform number keyed by (seed, sentence, place) picks one of them, the likeliest first: the same seed, the same sentence.

`<S>` is never drawn, and `<UNK>` only where it is allowed: it stands for no word. Where words are spelled by pieces, the first piece begins
a word (the prompt is of whole words), and a word is given when the next one begins.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from lm1b.errors import UserError
from lm1b.evaluation.trained.loading import LoadedModel
from lm1b.evaluation.trained.sampling_settings import SamplingSettings
from lm1b.randomness import derive_key, uniform

LONGEST_SPELLING = 64  # pieces of a drawn word


@torch.no_grad()
def sample_sentence(model: LoadedModel, prompt: str, settings: SamplingSettings, number: int = 0) -> Iterator[str]:
    """The words that follow `prompt` (tokenized, may be empty), up to the sentence's end or `settings.longest` of them.

    number: which of the seed's sentences. Raises UserError where the prompt holds a newline.
    """
    if "\n" in prompt:
        raise UserError("the prompt holds a newline; give the beginning of one sentence")
    scorer, vocabulary = model.scorer, model.vocabulary
    ids_N = vocabulary.encode(f"{prompt}\n".encode(), "prompt").ids_N
    before = [vocabulary.end_id, *ids_N[:-1].tolist()]  # its own `</S>` left out; an empty prompt has none
    never = vocabulary.never_drawn + ([] if settings.may_be_unknown else [vocabulary.unknown_id])
    continuing = np.flatnonzero(~vocabulary.begins(np.arange(vocabulary.size)))  # pieces that go on with a word; none of words
    key = derive_key(settings.seed, "sample", number)
    state = scorer.model.zero_state(1, scorer.ranks.device)
    word: list[int] = []
    num_words = 0
    for place in itertools.count():
        x_T1D = scorer.input_rows_UD[torch.tensor(before, device=scorer.ranks.device)].unsqueeze(1)
        hidden_T1P, state = scorer.model.hidden(x_T1D, state)
        logits_V = scorer.output.logits(hidden_T1P[-1, 0])
        logits_V[never] = -torch.inf
        if not word or len(word) >= LONGEST_SPELLING:
            logits_V[continuing] = -torch.inf
        drawn = choose(logits_V, settings, float(uniform(key, torch.tensor([place]))))
        if word and vocabulary.begins(np.array([drawn]))[0]:
            if text := vocabulary.word_of(word):  # a mark of a space with nothing behind it is no word
                yield text
                num_words += 1
            word = []
        if drawn == vocabulary.end_id or num_words >= settings.longest:
            return
        word.append(drawn)
        if not len(continuing):
            yield vocabulary.word_of(word)
            word, num_words = [], num_words + 1
            if num_words >= settings.longest:
                return
        before = [drawn]


def choose(logits_V: Tensor, settings: SamplingSettings, uniform_number: float) -> int:
    """The id that a number in (0, 1) picks. logits_V: float32 (V,), -inf for what is never drawn; one at least is finite."""
    if settings.temperature == 0.0:
        return int(logits_V.argmax())
    kept = min(settings.top_k or len(logits_V), int(torch.isfinite(logits_V).sum()))
    values_K, ids_K = torch.topk(logits_V, kept)  # falling
    shares_K = torch.softmax(values_K.double() / settings.temperature, 0).cpu().numpy()
    cumulative_K = np.cumsum(shares_K)
    if settings.top_p is not None:
        kept = int(np.searchsorted(cumulative_K, settings.top_p * cumulative_K[-1])) + 1
        cumulative_K = cumulative_K[:kept]
    place = int(np.searchsorted(cumulative_K, uniform_number * cumulative_K[-1], side="right"))
    return int(ids_K[min(place, len(cumulative_K) - 1)])
