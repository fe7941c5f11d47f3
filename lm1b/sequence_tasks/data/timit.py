"""Finding TIMIT's utterances, and whose are for training, for dev and for test.

Two layouts, in any letter case:

    TRAIN/DR1/FCJF0/SX127.WAV + .PHN, TEST/...    TIMIT itself (LDC93S1). train: all of TRAIN/, 462 speakers. dev and test: the
                                                  50 development and the 24 core test speakers, all from TEST/.
    dr1-fvmh0/sx206.wav + .phn                    speakers' folders, such as the sample of 16 speakers that goes round with NLTK.
                                                  Each of dev and test gets 3 of 16 speakers (at least 1), train the others.

Speakers' folders are dealt by a seed: women and men each in a random order, then by turns, so that dev and test are as near
to half and half as they can be. No speaker is in two splits. The sentences sa1 and sa2 are left out in either layout, as is usual:
everyone reads them, so they would be in training and test alike.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lm1b.errors import UserError
from lm1b.randomness import derive_key, permutation
from lm1b.sequence_tasks.data.task import SplitName

# The usual split of TEST/ (Halberstadt 1998), two men and one woman of each dialect region in the core test set.
_CORE_TEST = (
    "felc0 mdab0 mwbt0 fpas0 mtas1 mwew0 fpkt0 mjmp0 mlnt0 fjlm0 mlll0 mtls0 "
    "fnlp0 mbpm0 mklt0 fmgd0 mcmj0 mjdh0 fdhc0 mgrt0 mnjm0 fmld0 mjln0 mpam0"
)
_DEV = (
    "fadg0 faks0 fcal1 fcmh0 fdac1 fdms0 fdrw0 fedw0 fgjd0 fjem0 fjmg0 fjsj0 fkms0 fmah0 fmml0 fnmr0 frew0 fsem0 "
    "majc0 mbdg0 mbns0 mbwm0 mcsh0 mdlf0 mdls0 mdvc0 mers0 mgjf0 mglb0 mgwt0 mjar0 mjfc0 mjsw0 mmdb1 mmdm2 mmjr0 mmwh0 mpdf0 "
    "mrcs0 mreb0 mrjm4 mrjr0 mroa0 mrtk0 mrws1 mtaa0 mtdt0 mteb0 mthc0 mwjg0"
)
CORE_TEST_SPEAKERS, DEV_SPEAKERS = frozenset(_CORE_TEST.split()), frozenset(_DEV.split())
HELD_OUT_SHARE = 3 / 16  # of a folder's speakers, for dev and again for test
SHARED_SENTENCES = re.compile(r"sa\d+")


@dataclass(frozen=True)
class Utterance:
    """One sentence read by one speaker. speaker: lower case, without the dialect region."""

    speaker: str
    wav: Path
    phn: Path


@dataclass(frozen=True)
class Timit:
    """What a folder holds. layout, split_rule: in words, for the record. num_left_out: utterances of sa1 and sa2."""

    layout: str
    split_rule: str
    splits: dict[SplitName, list[Utterance]]
    num_left_out: int


def find_timit(folder: Path, split_seed: int) -> Timit:
    """The utterances of a folder, split by speakers. Raises UserError for a folder that is of neither layout or incomplete."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: expected TIMIT (TRAIN/ and TEST/) or speakers' folders such as dr1-fvmh0/")
    parts = {child.name.lower(): child for child in sorted(folder.iterdir()) if child.is_dir()}
    if "train" in parts and "test" in parts:
        train, left_out_of_train = _utterances(sorted(parts["train"].glob("*/*")))
        held_out, left_out_of_test = _utterances(sorted(parts["test"].glob("*/*")))
        splits: dict[SplitName, list[Utterance]] = {"train": train}
        splits["dev"] = _of_all_speakers(held_out, DEV_SPEAKERS, parts["test"])
        splits["test"] = _of_all_speakers(held_out, CORE_TEST_SPEAKERS, parts["test"])
        if not train:
            raise UserError(f"{parts['train']} holds no utterances: expected folders such as DR1/FCJF0/ with .WAV and .PHN files")
        shared = {utterance.speaker for utterance in train} & (DEV_SPEAKERS | CORE_TEST_SPEAKERS)
        if shared:
            raise UserError(f"{parts['train']} holds speakers of TEST/: {', '.join(sorted(shared))}")
        rule = "TRAIN/, the 50 development and the 24 core test speakers"
        return Timit("TIMIT", rule, splits, left_out_of_train + left_out_of_test)
    if "train" in parts or "test" in parts:
        raise UserError(f"{folder} holds only one of TRAIN/ and TEST/: TIMIT has both")
    utterances, num_left_out = _utterances(list(parts.values()))
    rule = f"speakers dealt by seed {split_seed}, women and men by turns"
    return Timit("speakers' folders", rule, _dealt(folder, utterances, split_seed), num_left_out)


def _utterances(speaker_folders: list[Path]) -> tuple[list[Utterance], int]:
    """All utterances but sa1 and sa2, and how many of those were left out."""
    utterances, num_left_out = [], 0
    for folder in speaker_folders:
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
        files = {path.name.lower(): path for path in paths if not path.name.startswith(".")}  # `._SX127.WAV`: a Mac's note on a file
        # Some copies hold every sentence twice: SX127.WAV, and a RIFF version named SX127.WAV.wav.
        for sentence in sorted({_sentence(name) for name in files if name.endswith((".wav", ".phn"))}):
            if SHARED_SENTENCES.fullmatch(sentence):
                num_left_out += 1
                continue
            wav = files.get(f"{sentence}.wav") or files.get(f"{sentence}.wav.wav")
            phn = files.get(f"{sentence}.phn")
            if wav is None or phn is None:
                found, missing = (phn, "wav") if wav is None else (wav, "phn")
                raise UserError(f"{found} has no .{missing} file beside it: expected {sentence}.{missing} in the same folder")
            speaker = folder.name.lower().split("-")[-1]
            if not speaker:
                raise UserError(f"{folder} names no speaker: expected a folder such as dr1-fvmh0")
            utterances.append(Utterance(speaker, wav, phn))
    return utterances, num_left_out


def _sentence(name: str) -> str:
    """Which sentence a file is of: sx127 for sx127.wav, sx127.wav.wav and sx127.phn."""
    return name.removesuffix(".phn") if name.endswith(".phn") else name.removesuffix(".wav").removesuffix(".wav")


def _of_all_speakers(utterances: list[Utterance], speakers: frozenset[str], folder: Path) -> list[Utterance]:
    """The utterances of these speakers, every one of whom must be there: on others the published figures do not apply."""
    missing = sorted(speakers - {utterance.speaker for utterance in utterances})
    if missing:
        named = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise UserError(f"{folder} lacks {len(missing)} of the {len(speakers)} speakers of a standard split ({named}): is TIMIT complete?")
    return [utterance for utterance in utterances if utterance.speaker in speakers]


def _dealt(folder: Path, utterances: list[Utterance], seed: int) -> dict[SplitName, list[Utterance]]:
    """Utterances by split, the speakers dealt by the seed. TIMIT's names of speakers begin with f or m."""
    speakers = sorted({utterance.speaker for utterance in utterances})
    if len(speakers) < 3:
        raise UserError(
            f"{folder} holds utterances of {len(speakers)} speakers, expected TIMIT (TRAIN/ and TEST/) or 3 or more speakers' folders"
        )
    turns = []
    for sex in sorted({speaker[0] for speaker in speakers}):
        group = [speaker for speaker in speakers if speaker[0] == sex]
        order = permutation(derive_key(seed, "speakers", sex), len(group)).tolist()
        turns += [(turn, sex, group[member]) for turn, member in enumerate(order)]
    in_turn = [speaker for _, _, speaker in sorted(turns)]
    num_held_out = max(1, round(HELD_OUT_SHARE * len(in_turn)))
    names: dict[SplitName, set[str]] = {
        "dev": set(in_turn[:num_held_out]),
        "test": set(in_turn[num_held_out : 2 * num_held_out]),
        "train": set(in_turn[2 * num_held_out :]),
    }
    return {name: [utterance for utterance in utterances if utterance.speaker in chosen] for name, chosen in names.items()}
