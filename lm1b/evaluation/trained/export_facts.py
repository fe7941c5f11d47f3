"""What an exported model says of itself: config.json and generation_config.json. No path of the machine goes into them."""

from __future__ import annotations

from typing import Any

from lm1b import __version__
from lm1b.data.tokens.directory import TokenDirectory
from lm1b.evaluation.trained.exported import FORMAT_VERSION
from lm1b.evaluation.trained.open import OpenedCheckpoint
from lm1b.training.evaluations import Evaluation, Weights, count_test_looks

# Of an evaluation; the files' names stay behind.
EVALUATION_FACTS = (
    *("split", "official", "state", "lanes", "precision", "weights", "nats", "predictions", "words", "sentences", "unknown"),
    *("tokens", "word_perplexity", "label", "finished_at"),
)


def _known_perplexities(evaluations: list[Evaluation], step: int, kind: str, fingerprint: str) -> list[dict[str, Any]]:
    """What is known of this checkpoint and these weights, the newest result of each text and protocol; no paths."""
    newest = {}
    for each in evaluations:
        if (each.step, each.weights, each.vocabulary) == (step, kind, fingerprint):
            newest[each.text_key, each.protocol] = each.only(EVALUATION_FACTS)
    return list(newest.values())


def export_facts(
    trained: OpenedCheckpoint, tokens: TokenDirectory, kind: Weights, precision: str, evaluations: list[Evaluation]
) -> dict[str, Any]:
    """Ours of config.json: whatever tells what the model is and what its figures mean. evaluations: of the run."""
    vocabulary, architecture, step = tokens.vocabulary, trained.architecture, trained.checkpoint.step
    counts = ("num_sentences", "num_words", "num_tokens", "num_unknown")
    return {
        "format_version": FORMAT_VERSION,
        "program": f"lm1b {__version__}",
        "model": architecture.model.as_json(),
        "softmax": architecture.softmax.as_json(),
        "vocabulary": {
            "size": vocabulary.size,
            "fingerprint": vocabulary.fingerprint,
            "end_id": vocabulary.end_id,
            "unknown_id": vocabulary.unknown_id,
            "start_id": vocabulary.start_id,
            "kind": vocabulary.kind,
            "label": vocabulary.label,
        },
        "step": step,
        "epoch": trained.state.get("epoch"),
        "weights": kind,
        "precision": precision,
        "corpus": {
            "kind": tokens.corpus.get("kind"),
            "official": bool(tokens.corpus.get("official")),
            "train": {count: getattr(tokens.manifest.splits["train"], count) for count in counts},
        },
        "evaluations": _known_perplexities(evaluations, step, kind, vocabulary.fingerprint),
        "looks_at_test": count_test_looks(evaluations),
    }


def hugging_face_config(facts: dict[str, Any]) -> dict[str, Any]:
    """config.json, as `transformers` reads it."""
    vocabulary = facts["vocabulary"]
    return {
        "architectures": ["Lm1bForCausalLM"],
        "model_type": "lm1b",
        "dtype": {"fp32": "float32", "bf16": "bfloat16"}[facts["precision"]],
        "vocab_size": vocabulary["size"],
        "bos_token_id": vocabulary["end_id"],  # a sentence's first word is predicted from the end of the one before
        "eos_token_id": vocabulary["end_id"],
        "pad_token_id": vocabulary["end_id"],
        "tie_word_embeddings": facts["model"]["tie_tables"],
        "lm1b": facts,
    }


def generation_config(facts: dict[str, Any]) -> dict[str, Any]:
    """What `generate` of `transformers` takes for granted: words that stand for nothing are not drawn."""
    vocabulary = facts["vocabulary"]
    end = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), vocabulary["end_id"])
    return {**end, "suppress_tokens": sorted([vocabulary["unknown_id"], vocabulary["start_id"]]), "use_cache": False}
