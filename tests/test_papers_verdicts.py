"""What the papers' report says of two cells, and how it shows runs that diverged."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_papers import ADDING_150, FAILS, SOLVES, kept, made_language_models, made_result

from lm1b.files import write_json
from lm1b.sequence_tasks.papers.kept import read_kept, shorten, write_kept
from lm1b.sequence_tasks.papers.language_models import judge_ratio, judge_spread, read_groups
from lm1b.sequence_tasks.papers.plots import mark_diverged, new_figure
from lm1b.sequence_tasks.papers.published import Claim, Row
from lm1b.sequence_tasks.papers.report import render
from lm1b.sequence_tasks.papers.sensitivity import num_diverged, rate_sentences
from lm1b.sequence_tasks.papers.tables import our_columns
from lm1b.sequence_tasks.papers.verdicts import compare, guard_sentence, judge, judge_figure, shown_range


def test_cells_differ_only_where_the_ranges_of_their_seeds_do_not_overlap() -> None:
    assert compare([0.1, 0.2], [0.3, 0.4]) == "lower"
    assert compare([0.3, 0.4], [0.1, 0.2]) == "higher"
    assert compare([0.1, 0.3], [0.3, 0.4]) == "cannot tell"
    assert compare([0.1], [0.3, 0.4]) == "cannot tell"  # one seed has no range
    assert compare([0.1, float("inf")], [0.3, 0.4]) == "cannot tell"  # a seed diverged


def test_a_claim_is_not_judged_across_budgets_or_where_nothing_is_learned() -> None:
    claim = Claim("ahead", "irnn", "tanh_rnn")
    good, bad = made_result(ADDING_150, "irnn", SOLVES), made_result(ADDING_150, "tanh_rnn", FAILS)
    assert "It agrees" in judge(claim, [kept(good), kept(bad)])
    assert "It disagrees" in judge(claim, [kept(made_result(ADDING_150, "irnn", FAILS)), kept(made_result(ADDING_150, "tanh_rnn", SOLVES))])
    assert "neither learns the task" in judge(claim, [kept(made_result(ADDING_150, "irnn", [0.15, 0.16])), kept(bad)])
    bad["config"]["training"]["updates"] = 5_000
    assert "the budgets differ" in judge(claim, [kept(good), kept(bad)])


def test_a_cell_stands_for_itself_by_its_error_on_dev_not_on_test() -> None:
    one, two = made_result(ADDING_150, "irnn", SOLVES), made_result(ADDING_150, "irnn", FAILS, model={"identity_scale": 0.01})
    for run_of_one in one["runs"]:
        run_of_one["dev_error"] = 1.0
    said = judge(Claim("solves", "irnn"), [kept(one), kept(two)])
    assert "here 0 of 5 seeds" in said
    assert said.endswith("The IRNN here is the one of 2 initialisations that was best on dev.")
    assert "initialisations" not in judge(Claim("solves", "irnn"), [kept(one)])


@pytest.mark.parametrize(
    ("errors", "said"),
    [
        ([0.02, 0.03, 0.2, 0.3, 0.4], "it agrees."),
        ([0.02, 0.03, 0.2, 0.3, None], "it agrees in part, for 1 of 5 diverged."),
        ([0.02, 0.02, 0.02, 0.02, None], "it disagrees."),
        ([0.02, 0.03, None, None, None], "at least half of our seeds diverged: it disagrees."),
    ],
)
def test_a_seed_that_diverged_brings_no_figure_into_the_range(errors: list[float | None], said: str) -> None:
    found = judge_figure(
        Row("irnn", "RNN", "18 %", "recalled", 0.18), [kept(made_result({"kind": "actions", "path": "x"}, "irnn", errors))]
    )
    assert found is not None
    assert found.endswith(said)


GUARDS = {
    "no_clipping": {"optimizer": {"clip_norm": None}},
    "clip_value": {"optimizer": {"clip_value": 0.1}},
    "stabilizer": {"training": {"norm_stabilizer": 50.0}},
    "identity_0_9": {"model": {"identity_scale": 0.9}},
    "identity_0_99": {"model": {"identity_scale": 0.99}},
}


@pytest.mark.parametrize("guard", GUARDS)
def test_a_guarded_result_never_stands_for_its_cell(guard: str, tmp_path: Path) -> None:
    """Its seeds all solve the task and the plain ones do not: the papers' tables say the latter, the guards' table shows both."""
    plain, guarded = made_result(ADDING_150, "irnn", FAILS), made_result(ADDING_150, "irnn", SOLVES, **GUARDS[guard])
    in_bf16 = made_result(
        ADDING_150, "irnn", SOLVES, **{**GUARDS[guard], "training": {**GUARDS[guard].get("training", {}), "precision": "bf16"}}
    )
    for name, result in {"plain": plain, "guarded": guarded, "in_bf16": in_bf16}.items():
        write_kept(tmp_path / f"{name}.json", shorten(result, name))
    assert [(result.is_plain, result.is_guarded) for result in read_kept(tmp_path)] == [(False, True), (False, False), (True, False)]
    text = render(tmp_path, tmp_path).read_text()
    tables, rest = text[: text.index("## Language model")], text[text.index("## Guards") :]
    assert "The paper's IRNN converges; here 0 of 5 seeds get below 0.01: it disagrees." in tables
    assert "guarded.json" not in tables
    assert "guarded.json" in rest
    label = kept(guarded).label
    assert f"adding, T = 150, {label}: cannot tell bf16 from float32" in rest  # laid beside the float32 run with the same guard


def test_an_identity_scaled_down_for_good_is_no_guard() -> None:
    assert kept(made_result(ADDING_150, "irnn", SOLVES, model={"identity_scale": 0.01})).is_plain
    assert kept(made_result(ADDING_150, "irnn", SOLVES)).is_plain


def test_a_range_of_accuracies_goes_from_the_least_to_the_greatest() -> None:
    assert (
        shown_range(kept(made_result({"kind": "actions", "path": "x"}, "irnn", [0.1, 0.2, 0.4])), accuracy=True)
        == "80.0 % (60.0 % to 90.0 %)"
    )


def test_insensitive_because_it_never_learns_is_no_agreement() -> None:
    irnn = kept(made_result(ADDING_150, "irnn", SOLVES))
    assert "It disagrees: the np-RNN learns with no rate" in rate_sentences([irnn, kept(made_result(ADDING_150, "np_rnn", FAILS))])[0]
    assert "It agrees in part" in rate_sentences([irnn, kept(made_result(ADDING_150, "np_rnn", SOLVES))])[0]


@pytest.mark.parametrize(
    ("perplexity", "found"),
    [
        (126.0, "is 25.9 % behind LSTM 256, more than 2.5 points from what the paper found."),
        (101.0, "is 0.9 % behind LSTM 256, within 2.5 points of what the paper found."),
        (99.0, "is 1.1 % ahead of LSTM 256, within 2.5 points of what the paper found."),
        (90.0, "is 10.1 % ahead of LSTM 256, more than 2.5 points from what the paper found."),
    ],
)
def test_one_seed_tells_large_differences_and_none_as_small_as_the_papers(perplexity: float, found: str) -> None:
    (group,) = read_groups(made_language_models(1))
    group.perplexities["irnn_4x256"]["test"] = [perplexity]
    said = judge_ratio("irnn_4x256", "lstm_256", group, "test", None)
    assert said.startswith("The paper has IRNN 4 x 512 0.9 % behind LSTM 512. Here IRNN 4 x 256, W = 0.5 I " + found)
    assert said.endswith("One seed cannot tell differences as small as the paper's.")


def test_where_seeds_are_known_to_differ_much_a_large_difference_may_be_a_seed_s_doing() -> None:
    (group,) = read_groups(made_language_models(1))
    group.perplexities["irnn_4x256"]["test"] = [108.0]
    assert "more than 2.5 points from what the paper found." in judge_ratio("irnn_4x256", "lstm_256", group, "test", 0.002)
    said = judge_ratio("irnn_4x256", "lstm_256", group, "test", 0.06)
    assert "within 12.0 points of what the paper found. One seed (where several were run, they differ by up to 6.0 %) cannot tell" in said


def test_three_seeds_test_the_papers_language_model_claims() -> None:
    (group,) = read_groups(made_language_models(3))
    assert judge_ratio("irnn_4x256", "lstm_256", group, "test", None).endswith("it agrees.")
    assert judge_ratio("tanh_4x256", "irnn_4x256", group, "test", None).endswith("it agrees.")
    group.perplexities["irnn_4x256"]["test"] = [108.0, 108.5, 109.0]
    assert judge_ratio("irnn_4x256", "lstm_256", group, "test", None).endswith("it disagrees, here it is further behind.")
    group.perplexities["irnn_4x256"]["test"] = [98.0, 104.0]
    assert "too wide" in judge_ratio("irnn_4x256", "lstm_256", group, "test", None)


def with_a_longer_budget(tmp_path: Path, perplexities: dict[str, list[float]]) -> str:
    """What papers.md says of a file with one seed a cell and, of some cells, three seeds over 1 epoch with these test perplexities."""
    value, longer = made_language_models(1), made_language_models(3, 1.0)
    for cell, of_cell in perplexities.items():
        runs = longer["cells"][cell]["runs"]
        assert list(runs) == [f"{cell}_seed_{seed}_1_epochs" for seed in (1, 2, 3)]
        for run, perplexity in zip(runs.values(), of_cell, strict=True):
            for line in run["scored"]:
                line["word_perplexity"] = perplexity + (1.0 if line["split"] == "validation" else 0.0)
        value["cells"][cell]["runs"] |= runs
    write_json(tmp_path / "language_models.json", value)
    text = render(tmp_path, tmp_path).read_text()
    return text[text.index("### Stand-in data: news_mix") : text.index("## Sensitivity")]


def test_several_seeds_have_a_table_of_their_own(tmp_path: Path) -> None:
    text = with_a_longer_budget(tmp_path, {"lstm_256": [80.0, 80.2, 80.4], "irnn_512": [84.0, 84.5, 84.2]})
    short, long = text.split("Budget: 1 epoch (")
    assert "spread on test" not in short
    assert "(where several were run, they differ by up to 0.6 %)" in short
    assert "Median (least to greatest) over the seeds." in long
    assert "| LSTM 256 | 81.2 (81.0 to 81.4) | 80.2 (80.0 to 80.4) | 80.2 (80.0 to 80.4) |  | 3 | 0.5 % | 0.002 |" in long
    name = "IRNN 1 x 512, projection 256, W = 0.5 I"
    assert f"| {name} | 85.2 (85.0 to 85.5) | 84.2 (84.0 to 84.5) | 84.2 (84.0 to 84.5) | +5.0 % | 3 | 0.6 % | 0.002 |" in long
    assert (
        f"- Seeds of one cell differ by up to 0.6 %, little enough to tell 1 % from 3.5 %, and {name} is not within 1 % of the LSTM here: "
        "+4.5 to +5.6 % over the seeds; +4.5 to +5.6 % on news.en.heldout-00010-of-00050." in long
    )
    assert f"{name} against LSTM 256: it disagrees, here it is further behind." in long


@pytest.mark.parametrize(
    ("irnn", "said"),
    [
        ([80.4, 80.5, 80.6], "little enough to tell 1 % from 3.5 %, and IRNN 1 x 512, projection 256, W = 0.5 I is within 1 % of the LSTM"),
        (
            [80.4, 80.9, 81.2],
            "little enough to tell 1 % from 3.5 %, and IRNN 1 x 512, projection 256, W = 0.5 I cannot be said to be within",
        ),
        ([78.0, 78.1, 78.2], "little enough to tell 1 % from 3.5 %, and IRNN 1 x 512, projection 256, W = 0.5 I is not within 1 %"),
        ([90.0, 94.0, 96.0], "too much to tell 1 % from 3.5 %, and IRNN 1 x 512, projection 256, W = 0.5 I is not within 1 %"),
        ([90.0, 94.0, float("inf")], "cannot be told without several finite seeds of both"),
    ],
)
def test_the_seeds_spread_says_what_it_can_tell(irnn: list[float], said: str) -> None:
    (group,) = read_groups(made_language_models(3, 1.0))
    group.perplexities["lstm_256"]["test"] = [80.2, 80.3, 80.4]
    group.perplexities["irnn_512"]["test"] = irnn
    del group.perplexities["irnn_4x256"]
    assert said in (judge_spread(group, "test") or "")


def test_one_seed_each_has_no_spread() -> None:
    (group,) = read_groups(made_language_models(1))
    assert judge_spread(group, "test") is None


def test_a_wide_range_that_is_all_too_far_from_the_paper_disagrees_all_the_same() -> None:
    (group,) = read_groups(made_language_models(3))
    group.perplexities["irnn_4x256"]["test"] = [120.0, 125.0, 130.0]
    assert judge_ratio("irnn_4x256", "lstm_256", group, "test", None).endswith("it disagrees, here it is further behind.")
    group.perplexities["irnn_4x256"]["test"] = [120.0, 125.0, float("inf")]
    assert "has no finite perplexity with some seed" in judge_ratio("irnn_4x256", "lstm_256", group, "test", None)


def test_a_failure_is_only_half_one_where_a_run_of_the_search_has_solved_the_task() -> None:
    claim = Claim("fails", "np_rnn")
    made = made_result(ADDING_150, "np_rnn", FAILS)
    assert judge(claim, [kept(made)]).endswith("here 0 of 5 seeds get below 0.01: it agrees.")
    made["search"]["rungs"][0]["runs"][1]["dev_error"] = 0.003
    assert judge(claim, [kept(made)]).endswith("while a run of the search did with learning rate 0.0003: it agrees in part.")
    assert judge(claim, [kept(made_result(ADDING_150, "np_rnn", [*FAILS[:4], 0.001]))]).endswith(
        "here 1 of 5 seeds get below 0.01: it agrees in part."
    )


def test_both_solving_the_task_is_doing_as_well_whatever_error_is_left() -> None:
    one, other = (
        kept(made_result(ADDING_150, "irnn", SOLVES)),
        kept(made_result(ADDING_150, "lstm", [0.0001, 0.0002, 0.0003, 0.0004, 0.0005])),
    )
    said = judge(Claim("level", "irnn", "lstm"), [one, other])
    assert "It agrees, both solve the task with every seed; less error is left to the LSTM after 10,000 updates:" in said
    said = judge(Claim("level", "irnn", "lstm"), [kept(made_result(ADDING_150, "irnn", [0.001, 0.002, 0.02])), other])
    assert "It disagrees" in said


def test_what_a_guard_does_is_told_in_seeds_that_diverge_and_in_the_error_of_the_others() -> None:
    plain = kept(made_result(ADDING_150, "irnn", [0.001, 0.002, None]))
    guarded = kept(made_result(ADDING_150, "irnn", [0.003, 0.004, 0.005], training={"norm_stabilizer": 50.0}))
    assert guard_sentence(guarded, [plain, guarded]) == (
        "adding, T = 150, IRNN, norm stabilizer 50: 0 of 3 seeds diverge, 1 of 3 without it, too few to tell a chance; the seeds that did "
        "not diverge do worse with it, no overlap."
    )
    assert "no run without the guard" in guard_sentence(guarded, [guarded])


def test_bursts_skipped_updates_and_a_rate_at_the_grids_end_are_shown() -> None:
    made = made_result(ADDING_150, "irnn", [0.001, 0.002, None])
    made["config"]["search"] = {"learning_rates": [0.0001, 0.001]}
    made["runs"][0]["curve"][61]["train_loss"] = 20.0
    made["runs"][2]["curve"][61]["train_loss"] = 20.0  # diverged: counted as that
    made["runs"][1]["skipped"] = 3
    columns = our_columns(kept(made), Path())
    assert columns[2:5] == ["1 of 3", "3; 1", "0.001 (an end of the grid)"]


def test_a_rate_has_diverged_by_how_its_run_ended_not_by_an_early_look() -> None:
    made = made_result(ADDING_150, "irnn", SOLVES)
    early = made["search"]["rungs"][0]["runs"][0]
    early["curve"][0] |= {"dev_loss": 1.0, "dev_error": 0.0}  # the least error, long before the run came down
    early |= {"best_updates": early["curve"][0]["updates"], "dev_error": 0.0}
    assert num_diverged(kept(made)) == 1  # the rate of 0.01 alone


def test_two_cells_that_diverge_are_told_one_above_the_other() -> None:
    _, (axes,) = new_figure(1)
    for cell in ("irnn", "relu_rnn"):
        mark_diverged(axes, kept(made_result(ADDING_150, cell, [0.1, None])), "C0")
    first, second = (text.get_position()[1] for text in axes.texts)
    assert second - first > 0.04
