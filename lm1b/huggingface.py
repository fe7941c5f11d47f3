"""Exported models in `transformers`, without code from the folder (`trust_remote_code`): the code is this package's.

    import lm1b.huggingface
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lm1b.huggingface.register()
    model = AutoModelForCausalLM.from_pretrained("models/irnn_lm")
    tokenizer = AutoTokenizer.from_pretrained("models/irnn_lm")

1. A sentence is `</S> w1 ... wn </S>`: `</S>` is what the first word is predicted from (`bos_token`) and what ends a sentence
   (`eos_token`). The tokenizer puts the first one there; write the last one where the sentence's end is to be predicted too.
2. Every row of `input_ids` starts from zero state. Position t predicts position t + 1, as everywhere in `transformers`.
3. Pad on either side, with an `attention_mask`: state starts from zero at a row's first word. `generate` goes on from the last column,
   so prompts of unequal length are padded on the left: `tokenizer(prompts, padding=True, padding_side="left")`.
4. There is no cache of keys and values: `generate` runs the whole text again for every word; launch/sample.py is the quick way.
5. There is no dropout, whatever `model.dropout` was: `train()` changes nothing.

`from_pretrained` does not verify the files against the manifest; `lm1b.load` does.

T steps, B sentences, D embedding, P output width, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lm1b.data.text.tokenized import END, UNKNOWN
from lm1b.data.vocabulary.files import load_vocabulary
from lm1b.errors import UserError
from lm1b.evaluation.trained.architecture import Architecture
from lm1b.evaluation.trained.exported import VOCABULARY

try:
    from tokenizers import Regex, Tokenizer, pre_tokenizers, processors
    from tokenizers.models import WordLevel
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoTokenizer,
        GenerationMixin,
        PreTrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerFast,
    )
    from transformers.modeling_outputs import CausalLMOutput
except ImportError as error:
    raise UserError(f"lm1b.huggingface needs transformers 5 ({error}): pip install -e '.[huggingface]'") from None


_WITHOUT_TOKENIZER = 'take ids from lm1b.load(folder).vocabulary.encode(b"a sentence") and put `</S>` in front'


class Lm1bConfig(PreTrainedConfig):
    """config.json of an exported model. lm1b: our own facts, the architecture among them."""

    model_type = "lm1b"

    vocab_size: int = 0
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False
    use_cache: bool = False
    lm1b: dict[str, Any] | None = None

    @property
    def architecture(self) -> Architecture:
        """Raises UserError where config.json has none that this program knows."""
        return Architecture.of_export(self.lm1b or {}, self.vocab_size, "config.json")


class OutputTable(nn.Linear):
    """The softmax's rows, and its bias, which stays float32: hidden [..., P] -> logits [..., V], float32."""

    def forward(self, hidden: Tensor) -> Tensor:  # type: ignore[override]
        """hidden: [..., P] -> float32 [..., V]."""
        return nn.functional.linear(hidden, self.weight).float() + self.bias.float()


class Lm1bForCausalLM(PreTrainedModel, GenerationMixin):
    """The core and its tables, all in memory; logits over the whole vocabulary (of the adaptive softmax its log-probabilities)."""

    config_class = Lm1bConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _keep_in_fp32_modules_strict = ["output_table.bias"]  # noqa: RUF012 (as the library has it)
    _tied_weights_keys = {"output_table.weight": "input_table.weight"}  # noqa: RUF012 (where config.tie_word_embeddings)

    def __init__(self, config: Lm1bConfig) -> None:
        super().__init__(config)
        architecture = config.architecture
        self.core = architecture.core()
        self.input_table = nn.Embedding(config.vocab_size, architecture.model.embedding)
        self.output_table = OutputTable(self.core.output_width, config.vocab_size) if architecture.has_output_rows else None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Weights come from a file; what is made without one keeps torch's own initial values."""

    def get_input_embeddings(self) -> nn.Module:
        """The input table, as the library asks for it."""
        return self.input_table

    def get_output_embeddings(self) -> nn.Module | None:
        """The softmax's rows; None for the adaptive softmax."""
        return self.output_table

    def prepare_inputs_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride] (the library hands all but the ids by name)
        self, input_ids: Tensor, **kwargs: Any
    ) -> dict[str, Any]:
        """The whole text every time: there is no cache. Raises ValueError for a text padded on the right, which has no last word."""
        attention_mask = kwargs.get("attention_mask")
        if attention_mask is not None and not bool(attention_mask[:, -1].all()):
            raise ValueError('generate goes on from the last column, which is padding here: tokenize with padding_side="left"')
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any
    ) -> CausalLMOutput:
        """logits: float32 [B, T, V], of the word after each position. loss: mean nats over the labels that are not -100.

        input_ids, labels: int64 [B, T]; labels are input_ids themselves, shifted inside. attention_mask: zeros at either end of a row.
        Raises ValueError for a mask with a gap.
        """
        starts_TB = None
        if attention_mask is not None:
            starts_TB = (attention_mask > nn.functional.pad(attention_mask, (1, -1))).T
            if bool((starts_TB.sum(0) > 1).any()):
                raise ValueError("attention_mask has zeros between ones; a row's words must follow each other: pad at its ends alone")
        x_TBD = self.input_table(input_ids.T)
        hidden_TBP, _ = self.core.hidden(x_TBD, self.core.zero_state(len(input_ids), x_TBD.device), resets_TB=starts_TB)
        hidden_BTP = hidden_TBP.transpose(0, 1)
        if self.core.adaptive is None:
            assert self.output_table is not None
            logits_BTV = self.output_table(hidden_BTP)
        else:
            logits_BTV = self.core.adaptive.log_probabilities(hidden_BTP.flatten(0, 1)).unflatten(0, hidden_BTP.shape[:2])
        loss: Any = None
        if labels is not None:
            loss_function: Any = self.loss_function  # the library's, which it looks up by the class's name
            loss = loss_function(logits_BTV, labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutput(loss=loss, logits=logits_BTV)


class Lm1bTokenizer(PreTrainedTokenizerFast):
    """Words parted by ASCII white space, as everywhere in lm1b; `</S>` is put in front. Unlike there, a written `</S>` is the symbol."""

    vocab_files_names = {"vocab_file": VOCABULARY}  # noqa: RUF012
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    model = WordLevel
    padding_side = "right"

    def __init__(self, vocab_file: str | None = None, vocab: dict[str, int] | str | None = None, **kwargs: Any) -> None:
        """vocab_file: vocabulary.txt. Raises UserError where it is none, or one of pieces."""
        path = vocab_file or (vocab if isinstance(vocab, str) else None)
        words = vocab if isinstance(vocab, dict) else {}
        if path is not None:
            vocabulary = load_vocabulary(Path(path))
            if vocabulary.kind != "words":
                raise UserError(f"{path}: pieces of words, which no tokenizer of transformers spells as lm1b does; {_WITHOUT_TOKENIZER}")
            words = {word: number for number, word in enumerate(vocabulary.id_to_token)}
        tokenizer = Tokenizer(WordLevel(words, unk_token=UNKNOWN))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[ \t\r\n\v\f]+"), "removed")
        if END in words:
            tokenizer.post_processor = processors.TemplateProcessing(
                single=f"{END} $A", pair=f"{END} $A {END} $B", special_tokens=[(END, words[END])]
            )
        symbols = {"bos_token": END, "eos_token": END, "pad_token": END, "unk_token": UNKNOWN, "clean_up_tokenization_spaces": False}
        super().__init__(tokenizer_object=tokenizer, vocab_file=path, **(symbols | kwargs))


def register() -> None:
    """Let AutoConfig, AutoModelForCausalLM and AutoTokenizer know exported models. May be called again."""
    AutoConfig.register(Lm1bConfig.model_type, Lm1bConfig, exist_ok=True)
    AutoModelForCausalLM.register(Lm1bConfig, Lm1bForCausalLM, exist_ok=True)
    AutoTokenizer.register(Lm1bConfig, tokenizer_class=Lm1bTokenizer, exist_ok=True)
