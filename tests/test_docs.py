"""The documents say what the code does: commands, options, messages, settings, files, exit codes; their links work."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main

import studies
import trainer.__main__
from search import errors
from search.cli import app
from search.paths import DEFAULT_RUNS, Runs
from studies import reference
from trainer.config import SIZE_SETTINGS, TrainConfig

ROOT = Path(__file__).parent.parent
DOCS = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
COMMAND: Any = typer.main.get_command(app)
COMMANDS = COMMAND.commands
PAGES = {"README.md": README} | {f"docs/{name}": text for name, text in DOCS.items()}


def blocks(*languages: str) -> list[str]:
    """What stands in the code blocks of README and docs."""
    fence = re.compile(rf"^ *```(?:{'|'.join(languages)})\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
    return [block for text in PAGES.values() for block in fence.findall(text)]


CODE_LINES = [
    line.split("  #")[0].split("   ")[0].strip().removeprefix("$ ")
    for block in blocks("bash", "console")
    for line in block.splitlines()
]
SHOWN = sorted({line for line in CODE_LINES if line.startswith("search ")})


def tracked_files() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


def test_the_readme_stays_short() -> None:
    assert len(README.splitlines()) <= 150
    assert [line for line in README.splitlines() if len(line) > 120] == []


def test_the_index_names_every_page() -> None:
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", DOCS["README.md"]))
    assert linked == DOCS.keys() - {"README.md"}


def anchors(text: str) -> set[str]:
    """Headings as GitHub makes them into anchors."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


BENCH = {f"bench/{path.name}": path.read_text(encoding="utf-8") for path in sorted((ROOT / "bench").glob("*.md"))}
LINKING = [*PAGES, *BENCH, "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "studies/LOG.md"]


@pytest.mark.parametrize("page", LINKING)
def test_no_link_is_dead(page: str) -> None:
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            dead.append(link)
    assert dead == []


def test_the_table_of_measurements_has_every_page_and_every_section_with_a_question() -> None:
    linked = set(re.findall(r"\]\(([\w-]+\.md(?:#[\w-]+)?)\)", BENCH["bench/README.md"]))
    asked = [
        f"{page.removeprefix('bench/')}#{anchor}"
        for page, text in BENCH.items()
        for heading in re.findall(r"^(## .*)\n\nQuestion: ", text, re.MULTILINE)
        for anchor in anchors(heading)
    ]
    assert len(asked) > 15
    assert set(asked) <= linked
    assert {link.partition("#")[0] for link in linked} | {"README.md"} == {
        page.removeprefix("bench/") for page in BENCH
    }


def test_sections_of_measurements_that_code_and_documents_name_exist() -> None:
    named = []
    for file in tracked_files():
        if file.endswith((".py", ".md")):
            text = re.sub(r"\s+(# )?", " ", (ROOT / file).read_text(encoding="utf-8"))
            named += [(file, *found) for found in re.findall(r'(bench/[\w-]+\.md)(?:, "([A-Z][^"]+)")?', text)]
    assert len(named) > 15
    wrong = [
        (file, page, heading)
        for file, page, heading in named
        if page not in BENCH or (heading and not anchors(f"# {heading}") <= anchors(BENCH[page]))
    ]
    assert wrong == []


PROMISES = {
    "a worker is killed": ["test_every_trial_is_bit_for_bit_what_it_would_have_been"],
    "the coordinator is killed": [
        "test_a_killed_coordinator_leaves_the_study_free",
        "test_no_worker_outlives_its_coordinator",
        "test_every_trial_is_finished_once_under_its_own_number",
    ],
    "a worker or the coordinator is killed with kill -9 while a candidate": [
        "test_killed_workers_lose_nothing_at_a_rung",
        "the_coordinator_dies_in_a_turn_and_is_launched_again",
    ],
    "the database goes away between the search": [
        "test_a_postgres_server_that_is_away_between_the_search_and_the_export_is_waited_for",
    ],
    "a launch is killed while it queues": [
        "test_a_kill_while_they_are_queued_loses_and_doubles_none",
        "test_a_kill_at_each_moment_of_the_repeat_loses_nothing",
    ],
    "the database goes away while a candidate": [
        "test_a_promotion_that_the_database_did_not_acknowledge_is_taken_again_with_the_same_candidate",
        "the_database_goes_away_in_a_turn_and_comes_back",
    ],
    "the checkpoints of paused trials": ["test_a_full_quota_takes_the_checkpoint_of_the_least_promotable"],
    "the rungs change": ["test_other_rungs_are_refused_while_candidates_wait_at_these"],
    "[on Slurm](cluster.md), a worker is preempted": [
        "test_every_trial_is_what_it_would_have_been_on_one_machine",
        "test_a_loss_or_preemption_is_no_retry",
        "test_a_job_that_slurm_cancels_is_preempted_and_no_failure",
    ],
    "[on Ray](cluster.md#when-a-node-ends), a worker": [
        "test_every_trial_is_what_it_would_have_been_if_nothing_had_ended",
        "test_a_trainings_files_are_at_home_before_its_epoch_is_heard_and_travel_to_the_next_worker",
        "test_an_actor_that_is_killed_is_lost_and_its_process_ends_with_it",
    ],
    "Ctrl-C": [
        "test_a_polite_stop_leaves_the_trial_running_after_a_whole_epoch",
        "test_search_stop_says_when_the_search_has_stopped",
        "test_a_stop_request_ends_it_with_what_is_done_kept",
    ],
    "SIGTERM": ["test_an_epoch_that_takes_longer_than_the_grace_is_given_up"],
    "a worker's process that even kill -9 does not end": [
        "test_a_process_that_no_signal_ends_is_left_alone_and_its_trial_goes_on_elsewhere",
        "test_closing_does_not_wait_for_a_process_that_no_signal_ends",
    ],
    "a trial that always crashes": [
        "test_a_trial_that_always_kills_its_worker_fails_after_two_retries_with_the_log",
        "test_the_same_error_in_two_trials_in_a_row_ends_the_search",
        "test_a_trial_that_always_hangs_fails",
    ],
    "out of memory": [
        "test_out_of_memory_goes_on_in_a_new_process_with_smaller_parts_of_the_batch",
        "test_out_of_memory_with_the_pictures_in_it_streams_them_before_the_batch_is_divided",
        "test_a_trial_too_large_for_any_part_is_pruned_and_the_sampler_knows",
    ],
    "another program fills a GPU": ["test_pictures_that_find_the_gpu_filled_are_streamed"],
    "a loss that is not finite": ["test_a_diverged_trial_is_pruned_with_its_last_finite_value_and_the_reason"],
    "three CUDA errors": [
        "test_three_cuda_errors_put_a_device_aside_and_the_others_go_on",
        "test_a_device_that_drops_out_is_put_aside_and_the_others_go_on",
    ],
    "Postgres restarted": [
        "test_a_server_that_comes_and_goes_costs_nothing",
        "test_a_lock_lost_in_a_restart_is_taken_again",
        "test_an_export_trains_on_while_the_database_is_away_and_records_everything_once",
    ],
    "this machine gets another address": [
        "test_after_a_break_of_the_network_a_search_takes_its_lock_from_its_old_session",
        "test_while_its_old_session_keeps_the_lock_a_search_waits_as_in_any_outage",
        "test_a_launch_that_was_faster_after_a_break_of_the_network_is_told_from_the_old_session",
    ],
    "rows were copied into Postgres": ["test_rows_without_their_sequences_are_refused_with_lines_that_set_these"],
    "a Postgres server hangs": [
        "test_while_another_connection_locks_a_table_training_goes_on_and_nothing_is_lost_or_doubled",
        "test_a_server_that_is_stopped_is_given_up_by_the_client_and_counts_as_away",
        "test_while_a_pooler_or_the_server_hangs_a_stop_is_heard_within_a_second_and_turns_are_short",
        "test_no_signal_waits_for_a_call_that_never_comes_back",
    ],
    "a pooler in front of Postgres gives each transaction another session": [
        "test_a_pooler_that_gives_each_transaction_another_session_is_refused_and_gets_no_setting"
    ],
    "a table is locked, or the Postgres server hangs, while the dashboard": [
        "test_while_a_table_is_held_requests_get_the_reason_soon_and_others_are_answered",
    ],
    "a Postgres server turns read-only": [
        "test_while_the_server_is_read_only_training_goes_on_and_nothing_is_lost_or_doubled",
        "test_a_connection_to_a_read_only_server_is_left_for_one_that_may_lead_to_another_server",
        "test_a_running_search_waits_for_the_permission_that_it_has_lost_and_names_the_cure",
        "test_each_refusal_of_a_server_has_its_own_cure",
    ],
    "another program queues or adds a trial with impossible values": [
        "test_a_trial_queued_by_another_program_with_values_that_cannot_be_fails_and_the_search_goes_on",
        "test_a_queued_trial_with_values_that_cannot_be_fails_with_the_reason_and_the_search_goes_on",
        "test_an_added_trial_with_values_that_cannot_be_fails_too",
    ],
    "a search that failed before any epoch is launched again": [
        "test_trials_that_failed_before_an_epoch_do_not_count_once_the_study_file_has_changed",
        "test_a_trial_that_failed_after_an_epoch_counts_whatever_has_changed",
    ],
    "another program adds, copies or finishes trials": [
        "test_a_finished_trial_of_another_program_is_named_once_and_never_the_best",
        "test_a_foreign_trial_teaches_neither_sampler_nor_pruner",
        "test_a_trial_that_another_program_finishes_while_it_is_trained_is_let_go",
    ],
    "the database is an older copy than the journal": [
        "test_an_older_database_beside_a_newer_journal_is_said_and_searched_from_there",
        "test_a_newer_database_beside_an_older_journal_is_said_and_searched_from_there",
        "test_a_database_and_a_journal_that_have_each_gone_on_alone_are_brought_together",
    ],
    "a copy of the SQLite file is made or put back": [
        "test_a_copy_of_the_database_file_alone_has_every_trial",
        "test_whoever_leaves_a_study_leaves_all_of_it_in_the_database_file",
        "test_a_copy_put_back_beside_the_log_of_another_is_refused_with_the_cure",
    ],
    "a runs folder or a database file": [
        "test_a_database_file_may_have_any_name",
        "test_a_runs_folder_of_any_name_is_searched_told_and_exported_from",
    ],
    "two people have a study of the same name": [
        "test_two_people_with_one_database_are_told_whose_study_it_is",
    ],
    "a study is deleted with search delete": [
        "test_a_deleted_study_takes_what_belongs_to_it_and_nothing_else",
        "test_a_deletion_leaves_the_files_of_another_study_of_its_name",
        "test_a_study_in_use_is_not_deleted",
    ],
    "the database is of another version of Optuna": [
        "test_a_database_of_another_version_of_optuna_is_an_error_with_optunas_own_cure",
        "test_a_database_with_a_hard_link_is_refused_before_sqlite_would_corrupt_it",
        "test_a_study_is_held_by_whichever_name_its_database_is_opened",
    ],
    "another program locks the SQLite file": [
        "test_training_goes_on_while_the_database_is_away_and_nothing_is_lost_or_doubled",
        "test_no_turn_waits_longer_for_a_locked_file_than_one_time_out",
        "test_a_file_that_another_program_holds_is_an_error_that_says_so",
    ],
    "the disk fills up": ["test_a_full_disk_pauses_the_search_until_there_is_room"],
    "a checkpoint is torn": ["test_a_damaged_one_is_set_aside_and_the_one_before_is_used"],
    "the cache of decoded pictures": ["test_a_damaged_cache_is_an_error_to_a_worker_and_built_anew_by_a_launch"],
    "a picture is replaced": [
        "test_a_comparison_that_is_killed_at_any_step_is_done_again",
        "test_a_picture_of_the_same_size_and_time_is_read",
        "test_the_same_pictures_are_compared_once_and_keep_their_cache",
    ],
    "checkpoints fill their quota": [
        "test_the_oldest_checkpoints_that_nobody_trains_go_when_the_quota_is_spent",
        "test_it_says_what_checkpoints_take_of_how_much",
    ],
    "a checkpoint, a study file or an export made to attack": [
        "test_code_in_a_forged_one_does_not_run",
        "test_a_study_name_that_is_a_path_makes_no_folder",
        "test_an_export_whose_study_is_a_path_makes_no_file_there",
    ],
    "clients of the dashboard": [
        "test_the_newest_is_answered_however_many_of_its_own_address_wait",
        "test_many_who_do_not_read_a_large_answer_hold_no_thread",
        "test_a_body_is_kept_only_for_whoever_may_edit",
    ],
    "a proxy": [
        "test_through_a_proxy_nobody_counts_as_this_machine",
        "test_behind_a_proxy_with_tls_changes_come_from_its_pages_only",
        "test_the_recipe_of_a_proxy_shows_and_edits_studies_for_those_with_the_token",
    ],
    "another user left": ["test_what_another_user_left_in_its_place_blocks_nobody_and_is_named"],
    "network access": [
        "test_a_check_does_not_use_the_network",
        "test_from_launch_to_report_only_the_webhook_of_the_study_is_connected_to",
        "test_who_opens_a_model_keeps_no_record_of_its_use",
    ],
    "an address of [notify]": [
        "test_the_script_of_the_documents_tensorboard_and_apprise_see_a_search_and_keep_its_secrets",
        "test_the_address_that_is_told_is_kept_nowhere",
        "test_one_that_refuses_is_named_by_its_service_alone",
    ],
    "TensorBoard's files cannot be written": [
        "test_a_folder_that_cannot_be_written_is_named",
        "test_one_that_raises_is_named_once_and_called_again",
        "test_one_that_hangs_delays_neither_the_search_nor_for_long_its_end",
    ],
    "a password": [
        "test_the_password_is_in_no_output_process_list_page_database_or_file",
        "test_the_services_work_together_and_keep_their_secrets",
    ],
    "others read the SQLite file": [
        "test_readers_never_wait_for_the_writer_and_a_power_cut_takes_nothing_that_was_committed",
        "test_a_reader_in_the_middle_of_a_page_delays_no_search_and_sees_the_study_as_it_was",
    ],
    "the SQLite file is emptied or deleted": [
        "test_an_emptied_database_beside_a_journal_is_refused_and_left_as_it_is",
        "test_a_missing_database_is_named_with_the_journals_that_are_still_there",
    ],
    "the database belongs to another user": [
        "test_a_database_that_may_only_be_read_is_shown_and_a_write_is_one_sentence",
        "test_a_database_that_may_not_be_read_is_one_sentence",
    ],
    "the pictures have moved, or their disk": [
        "test_pictures_that_have_moved_are_found_with_the_command_of_the_message",
        "test_other_pictures_are_refused_and_not_remembered",
    ],
    "the study file, the pictures or the limit change": [
        "test_a_changed_study_is_refused_with_every_difference_until_it_is_accepted"
    ],
    "a later version of this program": [
        "test_a_setting_that_did_not_exist_counts_as_its_default",
        "test_later_defaults_are_for_new_studies_only",
        "test_under_another_recipe_finished_trials_stay_and_an_unfinished_one_begins_anew",
        "test_a_study_begun_from_a_file_of_the_product_goes_on_with_the_text_it_was_begun_with",
        "test_the_search_goes_on_to_its_budget_and_repeats_itself",
        "test_the_study_is_exported_from_the_trainings_of_before",
    ],
    "two launches of one study": [
        "test_a_second_launch_of_a_running_study_is_refused_and_names_the_holder",
        "test_two_studies_launched_at_once_on_one_new_database_both_get_to_their_end",
        "test_a_gpu_that_another_search_trains_on_is_refused",
    ],
    "the export is killed": ["test_killed_in_three_stages_it_ends_in_the_same_export"],
    "the study, or its SQLite file, is deleted": [
        "test_a_database_file_deleted_while_it_is_searched_is_noticed_although_it_can_be_written_to",
        "test_an_export_whose_study_is_deleted_says_so_and_writes_nothing_to_the_next",
        "test_a_search_that_has_lost_its_study_writes_no_last_page_to_it",
        "test_a_study_deleted_while_it_is_searched_is_noticed_although_its_name_is_there_again",
        "test_a_study_that_another_process_has_taken_over_is_written_to_no_more",
    ],
    "another study of the same name": [
        "test_a_study_begun_again_after_its_deletion_has_nothing_of_the_old_one",
        "test_what_was_put_aside_comes_back_with_its_study_and_counts_towards_the_quota",
    ],
    "a journal, a cache's statistics": [
        "test_an_altered_file_is_never_a_traceback_and_never_used_in_silence",
        "test_a_teacher_that_is_not_what_was_proven_is_refused",
    ],
    "an export is put where something else lies": [
        "test_what_is_no_whole_export_of_ours_is_never_deleted",
        "test_a_whole_export_is_replaced_and_at_each_instant_one_is_there",
        "test_the_current_folder_is_the_new_one_after_its_replacement_and_the_user_is_told",
        "test_a_kill_between_two_moves_is_mended_before_anything_else",
    ],
    "the old export cannot be moved": [
        "test_a_kill_at_any_step_leaves_the_old_or_the_new_export_and_the_next_command_completes_it",
        "test_an_old_export_that_may_not_be_removed_fails_neither_this_export_nor_later_ones",
        "test_what_cannot_be_moved_and_is_no_complete_export_is_told_before_the_final_training",
    ],
    "no space or no inode": [
        "test_a_full_disk_of_the_output_is_exit_11",
        "test_a_file_that_finds_no_room_is_named_and_exit_11",
    ],
    "a log cannot be written": [
        "test_a_log_that_cannot_be_written_is_said_once_and_ends_nothing",
        "test_a_worker_whose_log_folder_is_gone_or_cannot_be_made_is_started_all_the_same",
    ],
    "the proof of an export is killed": ["test_a_proof_that_memory_ran_out_for_says_memory"],
    "the journal is damaged": [
        "test_a_damaged_journal_is_set_aside_and_a_new_one_begins_with_what_the_database_has",
        "test_a_journal_that_lost_more_than_its_last_line_is_kept_aside_whole_and_a_replay_says_so",
        "test_a_last_line_that_a_crash_cut_is_removed_and_said",
        "test_what_a_journal_did_not_witness_is_not_judged_by_its_replay_and_the_rest_is_identical",
    ],
}
"""The beginning of each promise of docs/reliability.md -> the tests that hold it."""


def test_each_promise_names_the_files_of_the_tests_that_hold_it() -> None:
    rows = [line.strip("|").split(" | ") for line in DOCS["reliability.md"].splitlines() if "test_" in line]
    texts = {path.relative_to(ROOT / "tests").as_posix(): path.read_text() for path in ROOT.glob("tests/**/test_*.py")}
    promised = {what.strip().replace("`", ""): cited for what, *_, cited in rows}
    assert len(promised) == len(PROMISES)
    for promise, tests in PROMISES.items():
        (cited,) = (cited for what, cited in promised.items() if what.startswith(promise))
        named = set(re.findall(r"`([\w/]+/test_\w+\.py)`", cited))
        holding = {test: [file for file, text in texts.items() if f"def {test}(" in text] for test in tests}
        assert named == {file for files in holding.values() for file in files}, promise
        assert all(files for files in holding.values()), holding


SECTIONS = {heading: text for heading, _, text in (part.partition("\n") for part in DOCS["commands.md"].split("\n## "))}
"""The sections of docs/commands.md."""

EVERYWHERE = {"--verbose", "--quiet", "--help"}

COMMON = ("--gpus", "--data", "--set", "--runs", "--storage", "--json")


def options(name: str) -> set[str]:
    """The options of a command, as it has them."""
    return {one for parameter in COMMANDS[name].params for one in parameter.opts if one.startswith("--")} - EVERYWHERE


def test_the_options_of_every_command_and_of_none_are_listed() -> None:
    rows = "".join(re.findall(r"^\| `-.*?\|", SECTIONS["Options of every command"], re.M))
    listed = set(re.findall(r"--?[a-z-]+", rows))
    there = {one for parameter in COMMAND.params for one in (*parameter.opts, *parameter.secondary_opts)}
    assert listed == there - {"--help"}


def test_every_command_has_a_section_with_its_own_options_and_no_others() -> None:
    assert [heading for heading in SECTIONS if heading.startswith("search ")] != []
    assert {f"search {name}" for name in COMMANDS} == {heading for heading in SECTIONS if heading.startswith("search ")}
    for name in COMMANDS:
        rows = "\n".join(line.split(" | ")[0] for line in SECTIONS[f"search {name}"].splitlines() if line[:4] == "| `-")
        assert set(re.findall(r"--[a-z-]+", rows)) == options(name) - set(COMMON), name


def test_the_table_of_common_options_says_which_command_has_which() -> None:
    rows = re.findall(r"^\| \[`([\w-]+)`\]\(.*?\) \|(.*)\|$", SECTIONS["Common arguments and options"], re.MULTILINE)
    said = {name: [cell.strip() == "yes" for cell in cells.split("|")] for name, cells in rows}
    assert said == {name: [option in options(name) for option in COMMON] for name in COMMANDS}


def test_the_trainers_page_names_every_option_of_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        trainer.__main__.main(["--help"])
    there = set(re.findall(r"--[a-z]+", capsys.readouterr().out)) - {"--help"}
    assert set(re.findall(r"^\| `(--[a-z]+)", DOCS["trainer.md"], re.MULTILINE)) == there


@pytest.mark.parametrize("line", SHOWN)
def test_every_command_line_of_the_documents_parses(line: str) -> None:
    words = shlex.split(line)[1:]
    command = COMMANDS[words[0]]
    with command.make_context(words[0], words[1:], resilient_parsing=False) as context:
        assert context.params


def test_every_command_and_option_that_the_text_mentions_exists() -> None:
    quoted = {code for text in PAGES.values() for code in re.findall(r"`search ([a-z][\w-]+[^`]*)`", text)}
    for code in quoted - {"COMMAND --help"}:
        name = code.split()[0]
        assert name in COMMANDS, code
        assert set(re.findall(r"--[a-z-]+", code)) <= options(name) | EVERYWHERE, code


def test_the_documents_show_at_least_the_three_commands_of_the_product() -> None:
    assert {line.split()[1] for line in SHOWN} >= {"launch", "dashboard", "export-best"}


def exit_codes() -> set[int]:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.SearchError)]
    return {kind.exit_code for kind in kinds} | set(errors.TRAINER_EXIT_CODES.values()) | {errors.SECOND_SIGNAL}


def test_exit_codes_in_the_documents_are_those_of_the_errors() -> None:
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", DOCS["scripting.md"], re.MULTILINE)}
    assert documented == exit_codes() | {0}
    headings = re.findall(r"^## Code (.*)$", DOCS["troubleshooting.md"], re.MULTILINE)
    assert {int(code) for heading in headings for code in re.findall(r"\d+", heading)} == exit_codes()


def sentences() -> list[str]:
    """Every string of the program, the values of f-strings left out."""

    def text(node: ast.expr) -> str:
        return str(node.value) if isinstance(node, ast.Constant) else "\0"

    found = []
    for package in ("search", "studies", "trainer"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    found.append("".join(map(text, node.values)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


def test_every_message_of_the_troubleshooting_page_is_one_that_the_program_says() -> None:
    messages = re.findall(r"^\| `(.*?)` \|", DOCS["troubleshooting.md"], re.MULTILINE)
    assert len(messages) > 50
    said = sentences()

    def is_said(message: str) -> bool:
        parts = message.split("...")
        form = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
        return any(form.search(one) for one in said if all(part in one for part in parts))

    unsaid = [message for message in messages if not is_said(message)]
    assert unsaid == []


def test_every_command_about_a_study_that_is_printed_names_the_runs_folder() -> None:
    """``Runs.command`` spells such a command. A message that spells one itself has the option right after the name."""
    spelled = re.compile("search (delete|export-best|gpus|replay|report|status|stop) \0(?!\0)")
    assert [one for one in sentences() if spelled.search(one)] == []
    assert Runs(Path("a b")).command("stop", "birds", "--finish") == "search stop birds --finish --runs 'a b'"
    assert DEFAULT_RUNS.command("stop", "birds") == "search stop birds"


def test_the_page_of_settings_is_generated_from_the_fields() -> None:
    assert DOCS["settings.md"] == reference.page(), "python -m studies.reference > docs/settings.md"


def test_every_setting_that_the_pages_name_with_its_table_exists() -> None:
    fields = {name: reference.model_of(field.annotation) for name, field in studies.StudySpec.model_fields.items()}
    tables = {name: kind for name, kind in fields.items() if kind is not None}
    named = re.findall(
        rf"(?<![\w./])({'|'.join(tables)})\.(?!md\b|py\b)([a-z_]+)\b(?![./(])", "\n".join(PAGES.values())
    )
    assert [pair for pair in named if pair[1] not in tables[pair[0]].model_fields] == []


@pytest.mark.parametrize("block", blocks("toml"))
def test_every_study_that_the_pages_show_is_one(block: str, tmp_path: Path) -> None:
    space = next(one for one in blocks("toml") if one.startswith("[space]"))
    file = tmp_path / "mine.toml"
    file.write_text(block if "space" in tomllib.loads(block) else f"{block}\n{space}", encoding="utf-8")
    assert studies.load(str(file), ["limit.params=5000000"]).name == "mine"


def test_every_shipped_study_is_in_the_table() -> None:
    table = DOCS["writing-a-study.md"].partition("## Studies that come")[2].partition("\n## ")[0]
    rows = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(.*?)`", row)} == set(studies.names())


def test_the_table_of_recipes_names_every_setting_of_a_recipe() -> None:
    table = DOCS["writing-a-study.md"].partition("**Recipes**")[2].partition("Two commands")[0]
    named = {name for cell in re.findall(r"`(.*?)`", table) for name in re.findall(r"^[a-z_]+", cell)}
    others = {"model", "model_args", "stem", "require_timm", "epochs", "precision", "cuda_graph", "seed"}
    assert named == TrainConfig.model_fields.keys() - others - set(SIZE_SETTINGS)


def test_python_in_the_documents_is_python() -> None:
    for block in blocks("python"):
        ast.parse(inspect.cleandoc(block))


def rooms() -> list[Path]:
    packages = [ROOT / name for name in ("search", "studies", "trainer")]
    return [*packages, *sorted(file.parent for file in ROOT.glob("search/*/__init__.py"))]


@pytest.mark.parametrize("room", rooms(), ids=lambda room: room.relative_to(ROOT).as_posix())
def test_each_room_says_what_it_is_for_and_lists_its_modules(room: Path) -> None:
    text = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8"))) or ""
    said, _, listed = text.rpartition("\n\n")
    named = {name for line in listed.splitlines() for name in line.strip().partition("  ")[0].split(", ")}
    there = {entry.stem for entry in room.iterdir() if entry.suffix == ".py" or (entry / "__init__.py").exists()}
    assert said.endswith(".")
    assert named == there - {"__init__", "__main__"}


def test_architecture_lists_every_room_and_no_file_that_is_gone() -> None:
    named = set(re.findall(r"`((?:search|studies|trainer)/(?:[\w/]+(?:\.py|/))?)`", ARCHITECTURE))
    assert {f"{room.relative_to(ROOT).as_posix()}/" for room in rooms()} <= named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_architecture_stays_short() -> None:
    assert len(ARCHITECTURE.splitlines()) <= 150


def test_no_file_has_a_name_that_says_nothing() -> None:
    bad = re.compile(r"(utils?|common|helpers?|manager)\.py$")
    assert [name for name in tracked_files() if bad.search(name)] == []
