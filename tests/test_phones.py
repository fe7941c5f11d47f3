"""TIMIT's phone frames: audio and .phn files made up here, in both layouts; features, labels, splits, and every bad input by name."""

from __future__ import annotations

import math
import struct
import sys
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lm1b.errors import UserError
from lm1b.sequence_tasks.config import PhonesConfig
from lm1b.sequence_tasks.data.load import load_task
from lm1b.sequence_tasks.data.phone_labels import FOLDED_PHONES, PHONES, label_numbers, labels_at, read_phn
from lm1b.sequence_tasks.data.speech_features import NUM_MELS, features_of, frame_centres, read_audio
from lm1b.sequence_tasks.data.task import NO_LABEL, Task, constant_answer_nats, stored
from lm1b.sequence_tasks.data.timit import CORE_TEST_SPEAKERS, DEV_SPEAKERS, find_timit

SAMPLE = Path(__file__).resolve().parents[2] / "shared" / "data" / "timit_sample"
SPEAKERS = ["dr1-fvmh0", "dr1-mcpm0", "dr2-faem0", "dr2-marc0", "dr3-falk0", "dr3-madc0"]
NUM_SAMPLES = 2000  # 11 frames


def noise(seed: int, num_samples: int = NUM_SAMPLES, scale: float = 1000.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(num_samples) * scale).astype("<i2")


def write_wav(path: Path, samples: np.ndarray, rate: int = 16_000, channels: int = 1) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())


def write_sphere(path: Path, samples: np.ndarray) -> None:
    """A NIST SPHERE file, as TIMIT's own are."""
    fields = f"channel_count -i 1\nsample_count -i {len(samples)}\nsample_rate -i 16000\nsample_n_bytes -i 2\n"
    header = f"NIST_1A\n   1024\n{fields}sample_byte_format -s2 01\nsample_sig_bits -i 16\nend_head\n"
    path.write_bytes(header.encode().ljust(1024) + samples.tobytes())


PHN = "0 500 h#\n500 1100 sh\n1100 1500 q\n1500 2000 iy\n"


def write_speaker(folder: Path, seed: int, sentences: tuple[str, ...] = ("sa1", "sx1", "si2"), upper: bool = False) -> None:
    folder.mkdir(parents=True)
    for number, sentence in enumerate(sentences):
        name = sentence.upper() if upper else sentence
        write = write_sphere if upper else write_wav
        write(folder / f"{name}{'.WAV' if upper else '.wav'}", noise(10 * seed + number))
        (folder / f"{name}{'.PHN' if upper else '.phn'}").write_text(PHN)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six speakers of three sentences each: train 4, dev 1, test 1."""
    for number, speaker in enumerate(SPEAKERS):
        write_speaker(tmp_path / speaker, number)
    return tmp_path


def task_of(folder: Path, **settings: int) -> Task:
    return load_task(PhonesConfig.model_validate({"kind": "phones", "path": str(folder), **settings}))


def test_folding_reaches_39_labels_from_all_61_and_drops_only_q() -> None:
    assert len(PHONES) == len(set(PHONES)) == 61
    numbers = label_numbers(39)
    assert set(numbers) == set(PHONES)
    assert {phone for phone, number in numbers.items() if number == NO_LABEL} == {"q"}
    assert set(numbers.values()) - {NO_LABEL} == set(range(39))
    together = [sorted(phone for phone in PHONES if numbers[phone] == number) for number in range(39)]
    assert {" ".join(phones) for phones in together if len(phones) > 1} == {
        *("aa ao", "ah ax ax-h", "axr er", "hh hv", "ih ix", "el l", "em m", "en n nx", "eng ng", "sh zh", "uw ux"),
        "bcl dcl epi gcl h# kcl pau pcl tcl",
    }  # Lee and Hon 1989, table II
    assert sorted(label_numbers(61).values()) == list(range(61))


def test_a_frames_label_is_the_phone_at_its_centre(tmp_path: Path) -> None:
    path = tmp_path / "a.phn"
    path.write_text("0 360 h#\n360 361 sh\n361 840 q\n840 1000 iy\n")
    phones = read_phn(path, 1400)
    assert phones[1:3] == [(360, 361, "sh"), (361, 840, "q")]
    centres = frame_centres(7)
    assert centres.tolist() == [200, 360, 520, 680, 840, 1000, 1160]  # windows 0..399, 160..559, ...
    numbers = label_numbers(39)
    by_hand = ["sil", "sh", None, None, "iy", None, None]  # q has no label, and nothing is said after sample 1000
    assert labels_at(phones, centres, numbers).tolist() == [NO_LABEL if name is None else FOLDED_PHONES.index(name) for name in by_hand]
    assert labels_at(phones, centres, label_numbers(61))[2] == PHONES.index("q")


def test_steps_without_a_label_stay_so_in_a_batch_and_out_of_the_count() -> None:
    split = stored([torch.ones(3, 2), torch.ones(2, 2)], [torch.tensor([4, NO_LABEL, 5]), torch.tensor([NO_LABEL, 4])])
    assert split.batch(torch.tensor([0, 1])).targets.T.tolist() == [[4, NO_LABEL, 5], [NO_LABEL, 4, NO_LABEL]]
    assert constant_answer_nats(split.targets) == pytest.approx(-(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)))


@pytest.mark.parametrize("hertz", [300, 1000, 3000, 6000])
def test_a_pure_tone_is_loudest_in_its_mel_band(hertz: int) -> None:
    def mel(frequency: float) -> float:
        return 1127.0 * math.log(1.0 + frequency / 700.0)

    band_width = (mel(8000) - mel(20)) / (NUM_MELS + 1)
    nearest = round((mel(hertz) - mel(20)) / band_width) - 1  # band k is centred on mel(20) + (k + 1) * band_width
    tone = 8000 * np.sin(2 * np.pi * hertz * np.arange(4000) / 16_000)
    log_mels_TM = features_of(tone.astype(np.float32))[:, :NUM_MELS]
    assert set(log_mels_TM.argmax(1).tolist()) == {nearest}


def test_deltas_are_the_regression_over_two_frames_on_either_side() -> None:
    features_TD = features_of(noise(1, 4000).astype(np.float32)).double()
    assert features_TD.shape == (1 + (4000 - 400) // 160, 120)

    def delta(x_TM: torch.Tensor) -> torch.Tensor:
        at = [(torch.arange(len(x_TM)) + offset).clamp(0, len(x_TM) - 1) for offset in (-2, -1, 1, 2)]
        return (-2 * x_TM[at[0]] - x_TM[at[1]] + x_TM[at[2]] + 2 * x_TM[at[3]]) / 10

    log_mels_TM, delta_TM, delta_delta_TM = features_TD.split(NUM_MELS, dim=1)
    torch.testing.assert_close(delta_TM, delta(log_mels_TM), rtol=0, atol=1e-4)
    inner = slice(2, -2)  # Kaldi repeats the edge frames of the log-mels, not of their deltas
    torch.testing.assert_close(delta_delta_TM[inner], delta(delta_TM)[inner], rtol=0, atol=1e-4)


def test_features_are_normalised_by_the_training_frames_alone(folder: Path) -> None:
    before = task_of(folder)
    dev_speaker = find_timit(folder, split_seed=1).splits["dev"][0].wav.parent
    for wav in dev_speaker.glob("s[ix]*.wav"):
        write_wav(wav, noise(99, scale=5.0))
    after = task_of(folder)
    x_ND = before.train.batch(torch.arange(8)).x_TBD.flatten(0, 1).double()  # all are as long as each other: no padding
    assert x_ND.mean(0).abs().max() < 1e-5
    assert (x_ND.std(0, correction=0) - 1).abs().max() < 1e-4
    every = torch.arange(2)
    assert torch.equal(before.train.batch(every).x_TBD, after.train.batch(every).x_TBD)
    assert after.dev.batch(every).x_TBD[:, :, :NUM_MELS].mean() < -3  # much quieter than what was trained on, and seen to be so


def test_a_speaker_is_in_one_split_and_the_held_out_ones_are_of_both_sexes(tmp_path: Path) -> None:
    for number in range(16):
        write_speaker(tmp_path / f"dr{number // 2 + 1}-{'fm'[number % 2]}ab{number:x}0", number, ("sx1",))
    seen = set()
    for seed in range(1, 6):
        splits = find_timit(tmp_path, seed).splits
        speakers = {name: {utterance.speaker for utterance in utterances} for name, utterances in splits.items()}
        assert {name: len(those) for name, those in speakers.items()} == {"train": 10, "dev": 3, "test": 3}
        assert len(set().union(*speakers.values())) == 16
        assert {name: sum(one[0] == "f" for one in those) for name, those in speakers.items()} == {"train": 5, "dev": 2, "test": 1}
        assert find_timit(tmp_path, seed).splits == splits
        seen.add(frozenset(speakers["test"]))
    assert len(seen) > 1, "every seed deals the same"


def test_the_sentences_that_everyone_reads_are_left_out_and_the_rest_is_recorded(folder: Path) -> None:
    task = task_of(folder)
    assert (len(task.train), len(task.dev), len(task.test)) == (8, 2, 2)
    assert task.sources["left out"].startswith("6 utterances")
    assert task.sources["dev"] == "1 speakers, 2 utterances, 22 frames, 6 of them without a label"
    assert str(folder) not in str(task.sources)
    assert (task.asked, task.input_width, task.outputs) == ("label_per_step", 120, 39)
    by_hand = ["sil", "sil", "sh", "sh", "sh", "sh", None, None, None, "iy", "iy"]  # centres 200, 360, ..., 1800 against PHN
    expected = [NO_LABEL if name is None else FOLDED_PHONES.index(name) for name in by_hand]
    assert task.test.batch(torch.tensor([1])).targets.flatten().tolist() == expected
    assert task_of(folder, labels=61).outputs == 61


def write_whole_timit(folder: Path) -> None:
    for number, speaker in enumerate(sorted(CORE_TEST_SPEAKERS | DEV_SPEAKERS)):
        write_speaker(folder / "TEST" / "DR1" / speaker.upper(), number, ("SX1",), upper=True)
    write_speaker(folder / "TEST" / "DR1" / "FXYZ0", 80, upper=True)  # of neither standard split
    for number in range(2):
        write_speaker(folder / "TRAIN" / "DR1" / f"MXY{number}0", 81 + number, upper=True)
        write_wav(folder / "TRAIN" / "DR1" / f"MXY{number}0" / "SX1.WAV.wav", noise(5))  # as in a copy that goes round


def test_timit_itself_has_its_standard_splits(tmp_path: Path) -> None:
    assert (len(CORE_TEST_SPEAKERS), len(DEV_SPEAKERS), len(CORE_TEST_SPEAKERS & DEV_SPEAKERS)) == (24, 50, 0)
    assert sum(speaker[0] == "f" for speaker in CORE_TEST_SPEAKERS) == 8
    write_whole_timit(tmp_path)
    timit = find_timit(tmp_path, split_seed=1)
    assert {name: len(utterances) for name, utterances in timit.splits.items()} == {"train": 4, "dev": 50, "test": 24}
    assert {utterance.speaker for utterance in timit.splits["test"]} == CORE_TEST_SPEAKERS
    assert {utterance.speaker for utterance in timit.splits["dev"]} == DEV_SPEAKERS
    assert {utterance.wav.name for utterance in timit.splits["train"]} == {"SX1.WAV", "SI2.WAV"}
    assert timit.num_left_out == 3
    assert len(task_of(tmp_path).test) == 24


def test_timit_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    write_whole_timit(tmp_path)
    (tmp_path / "TEST" / "DR1" / "FELC0").rename(tmp_path / "TEST" / "DR1" / "FELC9")
    with pytest.raises(UserError, match=r"TEST lacks 1 of the 24 speakers of a standard split \(felc0\)"):
        task_of(tmp_path)
    (tmp_path / "TEST").rename(tmp_path / "ELSEWHERE")
    with pytest.raises(UserError, match="holds only one of TRAIN/ and TEST/"):
        task_of(tmp_path)


def test_sphere_and_riff_files_read_alike(tmp_path: Path) -> None:
    write_sphere(tmp_path / "a.wav", noise(3))
    write_wav(tmp_path / "b.wav", noise(3))
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav"), noise(3).astype(np.float32))
    np.testing.assert_array_equal(read_audio(tmp_path / "b.wav"), noise(3).astype(np.float32))


def test_a_folder_without_utterances_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path}/none is not a folder"):
        task_of(tmp_path / "none")
    with pytest.raises(UserError, match=f"{tmp_path} holds utterances of 0 speakers"):
        task_of(tmp_path)


def test_a_mac_s_notes_on_files_are_no_utterances_and_a_folder_without_a_speaker_is_named(folder: Path) -> None:
    before = task_of(folder)
    for name in ("._sx1.wav", "._sx1.phn"):
        (folder / SPEAKERS[0] / name).write_bytes(b"\x00\x05\x16\x07")
    assert task_of(folder).sources == before.sources
    write_speaker(folder / "dr1-", 7)
    with pytest.raises(UserError, match=r"dr1- names no speaker: expected a folder such as dr1-fvmh0"):
        task_of(folder)


SHORT_FORMAT = b"RIFF\x24\x00\x00\x00WAVEfmt \x10\x00\x00\x00" + struct.pack("<HH", 1, 1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda wav: write_wav(wav, noise(1), rate=8000), "8000 samples a second, expected 16000"),
        (lambda wav: write_wav(wav, noise(1, 4000), channels=2), "2 channels, expected 1"),
        (lambda wav: wav.write_text("this is no audio\n" * 100), "not audio that can be read"),
        (lambda wav: wav.write_bytes(b""), "not audio that can be read"),
        (lambda wav: wav.write_bytes(SHORT_FORMAT), "not audio that can be read"),
        (lambda wav: wav.write_bytes(wav.read_bytes()[:60]), "holds 8 samples, expected 400"),
        (lambda wav: wav.write_bytes(wav.read_bytes()[:2044]), r"\.phn goes on to sample 2000, but its audio has 1000: is the wav cut off"),
        (lambda wav: wav.with_suffix(".phn").unlink(), r"sx1\.wav has no \.phn file beside it"),
        (lambda wav: wav.unlink(), r"sx1\.phn has no \.wav file beside it"),
        (lambda wav: wav.with_name("sx1.old.wav").write_bytes(wav.read_bytes()), r"sx1\.old\.wav has no \.phn file beside it"),
        (lambda wav: wav.with_suffix(".phn").rename(wav.with_name("sx1.wav.phn")), r"sx1\.wav has no \.phn file beside it"),
    ],
)
def test_audio_that_cannot_be_used_is_refused_by_name(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    wav = folder / SPEAKERS[3] / "sx1.wav"
    damage(wav)
    with pytest.raises(UserError, match=message) as caught:
        task_of(folder)
    assert str(wav.with_suffix("")) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 500 h#\n500 2000\n", "line 2: expected `first_sample end_sample phone`, found '500 2000'"),
        ("0 500 h#\n500 -9 iy\n", "line 2: expected"),
        ("0 " + "9" * 5000 + " h#\n", "line 1: expected"),  # more digits than Python makes a number of
        ("0 500 h#\n500 2000 zz\n", "line 2: 'zz' is none of TIMIT's 61 phones"),
        ("0 500 h#\n600 2000 iy\n", "line 2: starts at sample 600, expected 500"),
        ("0 500 h#\n400 2000 iy\n", "line 2: starts at sample 400, expected 500"),
        ("100 2000 iy\n", "line 1: starts at sample 100, expected 0"),
        ("0 0 h#\n0 2000 iy\n", "line 1: a phone from sample 0 to 0 has no length"),
        ("0 2161 iy\n", "goes on to sample 2161, but its audio has 2000"),
        ("0 2000 q\n", "labels none of its 11 frames"),
        ("\n", "lists no phones"),
        ("0 2000 \xe9\n", "cannot be read as a list of phones"),
    ],
)
def test_phn_files_that_cannot_be_used_are_refused_by_name(folder: Path, text: str, message: str) -> None:
    phn = folder / SPEAKERS[2] / "si2.phn"
    phn.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message.replace("'", ".")) as caught:
        task_of(folder)
    assert str(phn) in str(caught.value)


def test_a_missing_library_names_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kaldi_native_fbank", None)  # what Python itself does for a module that must not be imported
    with pytest.raises(UserError, match=r"library kaldi-native-fbank .* install it with `pip install -e '\.\[phones\]'`"):
        task_of(folder)


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="needs ../shared/data/timit_sample, which is not passed on")
def test_the_real_sample_loads_whole() -> None:
    task = task_of(SAMPLE)
    assert (len(task.train), len(task.dev), len(task.test)) == (80, 24, 24)
    assert [task.sources[name].split(",")[0] for name in ("train", "dev", "test")] == ["10 speakers", "3 speakers", "3 speakers"]
    targets = [getattr(task, name).batch(torch.arange(len(getattr(task, name)))).targets for name in ("train", "dev", "test")]
    assert set(torch.cat([labels.flatten() for labels in targets]).tolist()) == {NO_LABEL, *range(39)}
    assert 2.9 < task.baseline_loss < 3.3  # far below ln 39 = 3.66: a quarter of speech is silence
