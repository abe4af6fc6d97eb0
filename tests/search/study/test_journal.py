"""The journal of a search, and what its replay proves."""

from __future__ import annotations

import resource
import signal
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import pytest
from click.testing import Result
from lines import events_of, launch, values_of, without_sums
from scripted import Bench, ScriptedPool, spec_of, states, trains
from typer.testing import CliRunner

from search.cli import app
from search.errors import ReplayFailed, StudyChanged, UsageError, exit_code_of
from search.paths import Runs
from search.study import sampling
from search.study.events import Ask, Assign, Epoch, Event, Stop, Tell
from search.study.journal import Journal, digest, read_journal
from search.study.replay import replay, replay_study, replay_with, text_of_replay
from studies import Search, StudySpec
from trainer.errors import ConfigError

ASKED, ASSIGNED = Ask(trial=0, params={}), Assign(trial=0, worker="cpu", attempt=1)
TOLD = Tell(trial=0, state="FAIL", value=None, reason="")

KNOWN = ({"lr": 0.03}, {"lr": 0.01, "dropout": 0.25})


def searched(folder: Path, **search: Any) -> tuple[StudySpec, list[Event]]:
    """A scripted search in three launches, with known recipes, pruned trials and a sampler that models from trial 3."""
    bench = Bench(folder)
    settings = {"pruner": "successive_halving", "trials": 12} | search
    for trials in (2, 5, settings["trials"]):
        spec = spec_of(**settings | {"trials": trials}).model_copy(update={"known": KNOWN})
        coordinator = bench.coordinator(ScriptedPool(trains, 2), spec)
        coordinator.run()
    assert (
        any(trial.state.name == "PRUNED" for trial in coordinator.trials.study.get_trials())
        or settings["pruner"] == "none"
    )
    return spec, read_journal(coordinator.journal.path)


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    return searched(tmp_path_factory.mktemp("journal"))[1]


def test_a_fresh_sampler_and_pruner_repeat_every_suggestion_and_decision(journal: list[Event]) -> None:
    found = replay(journal)
    assert (found.same_asks, found.asks) == (12, 12)
    assert found.same_decisions == found.decisions > 12
    assert found.identical


@pytest.mark.parametrize(
    "sampler", [word for word in get_args(Search.model_fields["sampler"].annotation) if word != "tpe"]
)
def test_other_samplers_repeat_themselves_too(tmp_path: Path, sampler: str) -> None:
    _, events = searched(tmp_path, sampler=sampler, trials=7)
    assert replay(events).identical


def test_the_model_repeats_itself_in_a_process_that_has_read_no_trial(tmp_path: Path) -> None:
    _, events = searched(tmp_path, sampler="model", trials=20)
    sampling._model_sampler.cache_clear()
    found = replay(events)
    assert found.identical
    assert found.asks == 20


def test_a_suggestion_that_differs_is_counted_and_shown(journal: list[Event]) -> None:
    changed = values_of(journal)
    late = [event for event in changed if event["event"] == "ask"][-1]
    late["params"]["lr"] *= 1.01
    found = replay(events_of(changed))
    assert (found.same_asks, found.asks) == (11, 12)
    assert found.first_difference is not None
    assert found.first_difference.startswith(f"trial {late['trial']} was ")


def test_a_result_that_differs_changes_what_is_suggested_after_it(journal: list[Event]) -> None:
    """So the agreement above is no accident: the sampler listens to the values."""
    changed = values_of(journal)
    for event in changed:
        if event["event"] in ("epoch", "tell") and event["value"] is not None:
            event["value"] = 1 - event["value"]
    assert replay(events_of(changed)).same_asks < 12


def test_a_torn_last_line_is_no_event_and_the_next_launch_cuts_it_off(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.append(ASKED)
    with path.open("ab") as file:
        file.write(b'{"at": 1, "event": "te')
    assert [event.event for event in read_journal(path)] == ["ask"]
    Journal(path).append(TOLD)
    assert [event.event for event in read_journal(path)] == ["ask", "tell"]


def test_a_damaged_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"event": "stop", "reason": ""}\nnonsense\n{"event": "stop", "reason": ""}\n')
    with pytest.raises(ReplayFailed, match=r"line 2 of .* is not an event, .*; the next search launch sets it aside"):
        read_journal(path)


def test_nobody_cuts_what_others_have_appended(tmp_path: Path) -> None:
    """Two that both take themselves for the owner, for an instant."""
    loser = Journal(tmp_path / "journal.jsonl")
    loser.append(launch())
    winner = Journal(loser.path)
    for journal in (winner, loser, winner, winner):
        journal.append(Epoch(trial=0, step=1, value=0.5, pruned=None))
    assert [event.event for event in read_journal(loser.path)] == ["launch"] + ["epoch"] * 4
    loser.is_taken_over = True
    loser.append(Stop(reason="told to"))
    assert len(read_journal(loser.path)) == 5


def test_half_a_line_for_which_there_was_no_room_is_taken_back_and_comes_with_the_next(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append(ASKED)
    before = journal.path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
        journal.append(ASSIGNED)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert journal.path.read_bytes() == before
    journal.append(TOLD)
    assert [event.event for event in read_journal(journal.path)] == ["ask", "assign", "tell"]


def test_what_a_kill_kept_out_of_the_journal_is_added_by_the_next_launch(tmp_path: Path) -> None:
    """A step is noted after the database has it, so a kill between the two loses the note."""
    bench = Bench(tmp_path)
    whole = bench.coordinator(ScriptedPool(trains), spec_of(trials=4))
    whole.run()
    path = whole.journal.path
    lines = path.read_bytes().splitlines(keepends=True)
    told = max(number for number, line in enumerate(lines) if b'"tell"' in line)
    path.write_bytes(b"".join(lines[:told]))
    assert bench.coordinator(ScriptedPool(trains), spec_of(trials=6)).run() is True
    events = read_journal(path)
    assert sorted(event.trial for event in events if isinstance(event, Tell)) == list(range(6))
    assert replay(events).identical


def test_a_trial_that_a_broken_connection_created_beyond_the_budget_is_no_hole_in_the_replay(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for trials in (2, 4):
        coordinator = bench.coordinator(ScriptedPool(trains), spec_of(trials=trials))
        coordinator.run()
        coordinator.trials.study.ask()
        coordinator.trials.fail_unknown()
    assert states(coordinator.trials.study) == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE", "FAIL"]
    found = replay(read_journal(coordinator.journal.path))
    assert (found.asks, found.identical) == (3, True)


def test_versions_that_any_launch_differed_in_are_reported(journal: list[Event]) -> None:
    changed = values_of(journal)
    launches = [event for event in changed if event["event"] == "launch"]
    launches[0]["versions"] |= {"numpy": "1.0", "torch": "1.0"}
    launches[1]["versions"] |= {"numpy": "1.1", "optuna": "3.0"}
    found = replay(events_of(changed))
    assert found.versions == {"numpy": ["1.0", "1.1", version("numpy")], "optuna": ["3.0", version("optuna")]}
    lines = text_of_replay(found).splitlines()
    assert lines[1] == f"  warning: made with numpy 1.0 and 1.1, replayed with {version('numpy')}"
    assert replay(journal).versions == {}


def test_a_search_that_does_not_repeat_itself_ends_its_replay_with_9_and_under_other_versions_with_a_warning(
    journal: list[Event], tmp_path: Path
) -> None:
    def answer(values: list[dict[str, Any]]) -> Result:
        path = Runs(tmp_path).journal("copy")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(without_sums(values))
        return CliRunner().invoke(app, ["replay", "copy", "--runs", str(tmp_path)])

    assert answer(values_of(journal)).exit_code == 0
    changed = values_of(journal)
    next(event for event in changed if event["event"] == "ask" and event["trial"] == 5)["params"]["lr"] *= 1.01
    differs = answer(changed)
    assert isinstance(differs.exception, ReplayFailed)
    assert exit_code_of(differs.exception) == 9
    assert "11 of 12 suggestions" in differs.output
    assert "first difference: trial 5 was {" in differs.output
    for event in changed:
        if event["event"] == "launch":
            event["versions"]["scipy"] = "1.0"
    warned = answer(changed)
    assert (warned.exit_code, warned.exception) == (0, None)
    assert "11 of 12 suggestions" in warned.output
    assert f"warning: made with scipy 1.0, replayed with {version('scipy')}" in warned.output


def test_a_journal_of_another_version_is_a_sentence_with_the_cure(journal: list[Event]) -> None:
    changed = values_of(journal)
    changed[0]["spec"]["moon"] = True
    with pytest.raises(StudyChanged, match="study 'scripted' was searched by another version") as refused:
        replay(events_of(changed))
    assert str(refused.value).endswith("\nreplay it with the version that searched it")


def test_another_pruner_is_judged_only_by_what_was_seen(journal: list[Event], tmp_path: Path) -> None:
    _, unpruned = searched(tmp_path, pruner="none")
    answer = replay_with(unpruned, "successive_halving")
    assert answer.stopped_earlier
    assert answer.unknown == ()
    assert answer.epochs_trained == 3 * 12
    lost = {event.trial: event.step for event in unpruned if isinstance(event, Epoch)}
    assert 0 < answer.epochs_saved <= 2 * len(answer.stopped_earlier)
    assert sorted(answer.kept + answer.stopped_earlier + answer.stopped_at_the_same_epoch) == sorted(lost)

    cut = replay_with(journal, "none")
    pruned = [event.trial for event in journal if isinstance(event, Tell) and event.state == "PRUNED"]
    assert cut.unknown == tuple(sorted(pruned))
    assert cut.epochs_saved == 0
    assert "(stopped by the search; none would have kept them until then)" in text_of_replay(cut)


def test_an_unknown_pruner_study_or_form_is_refused(tmp_path: Path) -> None:
    searched(tmp_path, trials=6)
    runs = Runs(tmp_path)
    assert replay_study("scripted", runs).to_json()["identical"]
    with pytest.raises(ConfigError, match="pruner"):
        replay_study("scripted", runs, "pruner=best")
    with pytest.raises(UsageError, match="write pruner=NAME"):
        replay_study("scripted", runs, "sampler=gp")
    for name in ("other", "../studies/scripted"):
        with pytest.raises(UsageError, match="has no journal"):
            replay_study(name, runs)


def test_the_digest_changes_with_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    assert digest(path) is None
    Journal(path).append(launch())
    before = digest(path)
    Journal(path).append(Stop(reason="told to"))
    assert digest(path) != before


def test_a_full_disk_delays_lines_and_loses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file cannot be opened while its folder is away; the line comes with the next one."""
    folder = tmp_path / "study"
    journal = Journal(folder / "journal.jsonl")
    journal.append(ASKED)
    folder.rename(tmp_path / "away")
    journal.append(ASSIGNED)
    (tmp_path / "away").rename(folder)
    journal.append(TOLD)
    assert [event.event for event in read_journal(folder / "journal.jsonl")] == ["ask", "assign", "tell"]
