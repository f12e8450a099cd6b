"""Each of the catalogue's 83 faults is a case of a table here, or covered by a test that is named, or cannot occur."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.faults.files import FILES, TREE
from tests.faults.pixels import PIXELS
from tests.faults.tags import TAGS
from tests.faults.test_film_faults import FILMS

TESTS = Path(__file__).resolve().parents[1]
CATALOGUE = range(1, 84)

# What is no case of a study: the tests that cover it.
COVERED: dict[int, tuple[str, ...]] = {
    2: (
        "test_lumbar_tables.py::test_a_study_that_no_table_lists_is_ignored_with_a_note",
        "test_lumbar_tables.py::test_a_table_of_another_data_set_is_pointed_out",
    ),
    49: (
        "test_lumbar_rois.py::test_nothing_found_completes_to_nothing",
        "test_lumbar_rois.py::test_missing_levels_are_on_the_line_of_the_others",
        "test_sharing.py::test_a_locator_that_is_never_finite_finds_nothing_and_is_counted",
    ),
    50: (
        "test_models_locator.py::test_levels_in_order_undo_a_swap_and_a_doubled_level",
        "test_lumbar_rois.py::test_between_bent_levels_it_is_the_middle",
    ),
    51: (
        "test_sampling.py::test_a_box_far_away_is_zero",
        "test_lumbar_rois.py::test_a_point_outside_of_the_picture_is_not_seen",
    ),
    52: (
        "test_sharing.py::test_logits_that_overflow_in_half_precision_are_computed_again_in_full",
        "test_sharing.py::test_a_grader_that_is_never_finite_costs_its_own_rows_and_is_counted",
        "test_submission.py::test_no_bad_number_replaces_a_good_file",
    ),
    53: ("test_sharing.py::test_no_gpu_and_a_gpu_whose_kernels_do_not_run_mean_the_cpu",),
    54: (
        "test_sharing.py::test_no_gpu_and_a_gpu_whose_kernels_do_not_run_mean_the_cpu",
        "test_doctor.py::test_a_device_that_computes_wrongly_is_found_out",
    ),
    55: (
        "test_sharing.py::test_a_batch_too_large_for_the_device_is_halved_until_it_fits",
        "test_sharing.py::test_an_item_too_large_for_the_gpu_goes_to_the_cpu",
        "test_sharing.py::test_nets_too_large_for_whole_batches_give_the_same_rows",
    ),
    56: ("test_sharing.py::test_a_gpu_that_is_lost_leaves_the_rest_to_the_cpu",),
    57: (
        "test_shards.py::test_the_list_of_a_dead_process_is_taken_by_the_other",
        "test_shards.py::test_a_study_that_kills_keeps_its_prior_and_costs_no_other",
    ),
    58: ("test_sharing.py::test_a_study_too_large_for_memory_is_read_twice_and_then_keeps_its_priors",),
    61: (
        "test_run.py::test_tampered_weights_lose_nothing",
        "test_bundle.py::test_a_missing_file_is_named",
        "test_bundle.py::test_one_changed_byte_is_found_before_anything_is_built",
    ),
    62: ("test_bundle.py::test_tensors_that_do_not_fit_the_net_are_told_apart",),
    63: ("test_bundle.py::test_a_stage_without_nets_is_named",),
    64: (
        "test_bundle.py::test_what_is_no_safetensors_is_never_unpickled",
        "test_architecture.py::test_nothing_is_unpickled_evaluated_or_given_to_a_shell",
    ),
    65: ("test_kernel.py::test_a_rehearsal_has_no_network",),
    66: ("test_bundle.py::test_tensors_that_do_not_fit_the_net_are_told_apart",),
    68: (
        "test_lumbar_tables.py::test_without_a_usable_table_the_folders_are_walked",
        "test_lumbar_tables.py::test_semicolons_and_other_encodings_are_read",
        "test_lumbar_tables.py::test_a_missing_column_is_named_with_those_found",
        "test_lumbar_tables.py::test_marks_of_origin_do_not_matter",
    ),
    69: (
        "test_lumbar_tables.py::test_rows_that_contradict_each_other_are_refused",
        "test_lumbar_tables.py::test_contradictions_and_odd_ids_cost_no_row",
    ),
    70: (
        "test_lumbar_tables.py::test_a_good_training_part_is_read_whole",
        "test_models_locator.py::test_nothing_labelled_gives_zero_loss_and_finite_gradients",
    ),
    71: (
        "test_lumbar_tables.py::test_ids_that_went_through_a_spreadsheet_come_back",
        "test_lumbar_tables.py::test_ids_stay_text",
    ),
    72: ("test_lumbar_tables.py::test_an_unknown_label_is_named_with_its_line",),
    73: (
        "test_lumbar_tables.py::test_points_that_are_no_pixel_are_dropped_and_counted",
        "test_models_locator.py::test_points_that_cannot_be_taught_are_left_out",
    ),
    74: ("test_run.py::test_every_row_of_a_stale_template_is_answered",),
    75: (
        "test_processes.py::test_a_full_disk_ends_with_the_last_good_file",
        "test_processes.py::test_a_forbidden_folder_ends_with_the_last_good_file",
        "test_processes.py::test_a_disk_that_is_full_for_a_while_costs_no_row",
    ),
    76: (
        "test_processes.py::test_killed_at_any_moment_the_file_is_whole_and_the_next_run_undisturbed",
        "test_processes.py::test_sigterm_writes_what_is_done_and_flags_the_rest",
    ),
    77: (
        "test_budget.py::test_a_whole_run_ends_in_time_whatever_the_studies_cost",
        "test_processes.py::test_rows_that_a_deadline_cut_off_are_flagged",
    ),
    79: ("test_processes.py::test_two_runs_into_one_file_do_not_share_a_half",),
    82: ("test_processes.py::test_no_studies_are_a_header",),
    83: (
        "faults/test_lumbar_faults.py::test_the_log_stays_short",
        "test_rle.py::test_damage_is_not_written_to_the_log",
    ),
}

# What cannot happen here, and why.
CANNOT: dict[int, str] = {
    59: "files are read by threads, processes tell each other through files: no shared memory is asked for",
    60: "no process is forked: further ones are new interpreters, started as commands (inference/multi_gpu.py)",
    67: "where numba finds no folder for compiled code, each process compiles anew (imaging/dicom/rle_numba.py)",
    78: "time is measured with time.monotonic alone (inference/deadline.py, inference/run.py)",
    80: "inference keeps no cache between runs; the caches of training are keyed (learning/cache.py)",
    81: "on a CPU a batch holds one study and one thread; parts of several devices are merged as text "
    "(inference/multi_gpu.py)",
}


def tabled() -> set[int]:
    return {case.fault for case in (*TREE, *FILES, *TAGS, *PIXELS)} | {film[0] for film in FILMS}


def test_every_fault_is_accounted_for_once():
    parts = (tabled(), set(COVERED), set(CANNOT))
    assert sorted(number for part in parts for number in part) == list(CATALOGUE)


@pytest.mark.parametrize("named", sorted({test for tests in COVERED.values() for test in tests}))
def test_the_named_tests_exist(named):
    path, _, name = named.partition("::")
    tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def sources() -> dict[str, str]:
    """Every module that inference may reach, by its path in the package: all rooms but those for other purposes."""
    package = TESTS.parent / "src" / "osteograde"
    others = {"learning", "kaggle", "report", "phantom"}
    paths = {path.relative_to(package): path for path in package.rglob("*.py")}
    return {
        name.as_posix(): path.read_text(encoding="utf-8") for name, path in paths.items() if name.parts[0] not in others
    }


def test_reasons_about_the_source_are_true():
    texts = sources()
    assert any("subprocess.Popen" in text for text in texts.values())  # what starts processes is looked at, too
    refused = re.compile(r"\btime\.time\(|from time import time\b|os\.fork|multiprocessing|ProcessPool|shared_memory")
    found = {name: match[0] for name, text in texts.items() if (match := refused.search(text))}
    assert found == {}


def test_reasons_name_modules_that_exist():
    named = {name for why in CANNOT.values() for name in re.findall(r"[\w/]+\.py", why)}
    package = TESTS.parent / "src" / "osteograde"
    assert [name for name in sorted(named) if not (package / name).is_file()] == []
