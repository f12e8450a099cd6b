"""Each of the catalogue's 105 faults is a case of a table here, covered by a test that is named, or cannot occur."""

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
# From 101 on: what people's folders, names and tables hold; from 121 on: what headers and pictures say.
CATALOGUE = (*range(1, 84), *range(101, 112), *range(121, 132))

# What is no case of a study: the tests that cover it.
COVERED: dict[int, tuple[str, ...]] = {
    2: (
        "test_lumbar_tables.py::test_a_study_that_no_table_lists_is_ignored_with_a_note",
        "test_lumbar_tables.py::test_a_table_of_another_data_set_is_pointed_out",
    ),
    49: (
        "test_lumbar_mr.py::test_nothing_found_completes_to_nothing",
        "test_lumbar_mr.py::test_missing_levels_are_on_the_line_of_the_others",
        "test_predict.py::test_a_locator_that_is_never_finite_finds_nothing_and_is_counted",
    ),
    50: (
        "test_locators.py::test_levels_in_order_undo_a_swap_and_a_doubled_level",
        "test_lumbar_mr.py::test_between_bent_levels_it_is_the_middle",
    ),
    51: (
        "test_resample.py::test_a_box_far_away_is_zero",
        "test_lumbar_mr.py::test_a_point_outside_of_the_picture_is_not_seen",
    ),
    52: (
        "test_predict.py::test_logits_that_overflow_in_half_precision_are_computed_again_in_full",
        "test_predict.py::test_a_grader_that_is_never_finite_costs_its_own_rows_and_is_counted",
        "test_submission.py::test_no_bad_number_replaces_a_good_file",
    ),
    53: ("test_predict.py::test_no_gpu_and_a_gpu_whose_kernels_do_not_run_mean_the_cpu",),
    54: (
        "test_predict.py::test_no_gpu_and_a_gpu_whose_kernels_do_not_run_mean_the_cpu",
        "test_doctor.py::test_a_device_that_computes_wrongly_is_found_out",
    ),
    55: (
        "test_predict.py::test_a_batch_too_large_for_the_device_is_halved_until_it_fits",
        "test_predict.py::test_an_item_too_large_for_the_gpu_goes_to_the_cpu",
        "test_predict.py::test_nets_too_large_for_whole_batches_give_the_same_rows",
    ),
    56: ("test_predict.py::test_a_gpu_that_is_lost_leaves_the_rest_to_the_cpu",),
    57: (
        "test_multi_gpu.py::test_the_list_of_a_dead_process_is_taken_by_the_other",
        "test_multi_gpu.py::test_a_study_that_kills_keeps_its_prior_and_costs_no_other",
    ),
    58: ("test_predict.py::test_a_study_too_large_for_memory_is_read_twice_and_then_keeps_its_priors",),
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
        "test_locators.py::test_nothing_labelled_gives_zero_loss_and_finite_gradients",
    ),
    71: (
        "test_lumbar_tables.py::test_ids_that_went_through_a_spreadsheet_come_back",
        "test_lumbar_tables.py::test_ids_stay_text",
    ),
    72: ("test_lumbar_tables.py::test_an_unknown_label_is_named_with_its_line",),
    73: (
        "test_lumbar_tables.py::test_points_that_are_no_pixel_are_dropped_and_counted",
        "test_locators.py::test_points_that_cannot_be_taught_are_left_out",
    ),
    74: ("test_run.py::test_every_row_of_a_stale_template_is_answered",),
    75: (
        "test_interrupted_runs.py::test_a_full_disk_ends_with_the_last_good_file",
        "test_interrupted_runs.py::test_a_forbidden_folder_ends_with_the_last_good_file",
        "test_interrupted_runs.py::test_a_disk_that_is_full_for_a_while_costs_no_row",
    ),
    76: (
        "test_interrupted_runs.py::test_killed_at_any_moment_the_file_is_whole_and_the_next_run_undisturbed",
        "test_interrupted_runs.py::test_sigterm_writes_what_is_done_and_flags_the_rest",
    ),
    77: (
        "test_deadline.py::test_a_whole_run_ends_in_time_whatever_the_studies_cost",
        "test_interrupted_runs.py::test_rows_that_a_deadline_cut_off_are_flagged",
    ),
    79: ("test_interrupted_runs.py::test_two_runs_into_one_file_do_not_share_a_half",),
    82: ("test_interrupted_runs.py::test_no_studies_are_a_header",),
    83: (
        "faults/test_lumbar_faults.py::test_the_log_stays_short",
        "test_rle.py::test_damage_is_not_written_to_the_log",
    ),
    101: (  # images whose names say nothing, and what is no image
        "test_discovery.py::test_content_decides_whatever_a_file_is_called",
        "test_discovery.py::test_what_systems_leave_behind_is_no_image_and_is_counted",
        "test_discovery.py::test_all_that_is_not_used_is_counted_by_ending_except_tables_that_were_read",
        "test_discovery.py::test_linked_folders_are_read_once_and_loops_end",
        "test_lumbar_tables.py::test_what_no_table_lists_is_counted",
    ),
    102: (  # ids that collide
        "test_discovery.py::test_every_file_has_a_name_of_its_own_that_a_row_id_may_hold",
        "test_discovery.py::test_names_made_of_paths_never_meet_the_names_of_others",
        "test_tables.py::test_no_target_ends_in_another_so_that_different_studies_never_share_a_row",
    ),
    103: ("test_discovery.py::test_objects_without_an_image_are_passed_over_and_counted_by_kind",),
    104: (  # training pictures that cannot be read
        "test_data_faults.py::test_a_damaged_picture_is_named_and_costs_its_own_label",
        "test_data_faults.py::test_few_losses_are_counted_without_a_warning_and_most_are_an_error",
        "test_data_faults.py::test_films_are_composed_of_the_crops_that_can_be_read",
    ),
    105: (  # annotated points that name no file
        "test_marks.py::test_marks_find_slices_by_instance_number_whatever_the_files_are_called",
        "test_data_faults.py::test_points_without_a_slice_and_series_that_cannot_be_read_are_counted",
    ),
    106: (  # sides and patients in names
        "test_names.py::test_side_and_patient_are_read_as_people_write_them",
        "test_knee_xray.py::test_the_side_in_a_name_is_the_row_and_a_guess_is_flagged",
        "test_knee_xray.py::test_all_visits_and_sides_of_a_name_are_one_patient_and_unnamed_ones_are_counted",
        "test_folds.py::test_folds_that_part_what_the_data_say_is_one_patient_are_refused",
    ),
    107: (  # landscape crops of one knee
        "test_knee_xray.py::test_a_label_says_one_knee_whatever_the_shape",
        "test_knee_xray.py::test_a_landscape_crop_of_a_named_side_is_one_knee_and_says_that_it_was_assumed",
    ),
    108: ("test_knee_xray.py::test_a_near_square_film_of_unknown_size_shows_both_knees",),
    109: (  # rows that contradict each other
        "test_tables.py::test_identical_rows_are_counted_and_contradictory_ones_refused",
        "test_spider.py::test_a_patient_and_disc_graded_twice_in_two_ways_is_refused_with_both_lines",
    ),
    110: (  # encodings, separators, short rows, numbers
        "test_tables.py::test_a_table_is_read_however_it_was_saved",
        "test_tables.py::test_rows_of_another_width_are_refused_with_their_line",
        "test_tables.py::test_a_whole_number_is_a_grade_however_it_is_written",
        "test_lumbar_tables.py::test_ids_that_lost_their_leading_zeros_are_those_of_the_folders",
    ),
    111: ("test_nothing_found.py::test_many_studies_with_nothing_found_make_the_task_doubtful",),
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
