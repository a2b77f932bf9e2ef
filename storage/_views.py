"""Ready views over the tables, in SQL, and a line about each table and view."""


def _means(names: str, spread: str = "") -> str:
    """Columns of means over seeds; NaN, as what could not be measured, counts as missing."""
    columns = []
    for name in names.split():
        given = f"FILTER (isfinite({name}))"
        columns.append(f"avg({name}) {given} AS {name}")
        if name in spread.split():
            columns.append(f"stddev_samp({name}) {given} AS {name}_std")
    return ", ".join(columns)


_RATES = "attack_accuracy auc tpr_at_fpr_0_01 tpr_at_fpr_0_001"
_COSTS = (
    "train_accuracy test_accuracy test_accuracy_drop ece l1_distortion label_change_rate "
    "swap_rate_members fit_s fit_ratio query_ratio"
)
_REBUILT = (
    "inversion_error inversion_error_members inversion_error_nonmembers mean_error "
    "class_mean_error ssim reidentified reidentified_originals cosine"
)
_INFERRED = (
    "balanced_accuracy balanced_accuracy_members balanced_accuracy_nonmembers uniform_accuracy "
    "natural_accuracy majority_accuracy macro_f1 mutual_information"
)
_FLAGS = """coalesce(list_sort(list_distinct(flatten(list(flags) FILTER (flags IS NOT NULL)))), [])
    AS flags"""

# Rows of other settings are never averaged; all seeds of what is asked for now are current.
_GROUP = "coalesce(service, '') AS service, settings, bool_or(current) AS current"


def _now(view: str) -> str:
    """The rows of a view of means that are current, or all of a service that has none."""
    of_service = "PARTITION BY experiment, dataset, label, service"
    return f"(FROM {view} QUALIFY current = bool_or(current) OVER ({of_service}))"


READY = {
    "mean_results": f"""
        SELECT experiment, dataset, label, attack_label, count(DISTINCT seed) AS num_seeds,
            {_means(_RATES, _RATES)}, {_means("epsilon_lower_bound epsilon_one_run")},
            any_value(effort) AS effort, {_FLAGS}, {_GROUP}
        FROM results GROUP BY ALL
        ORDER BY experiment, dataset, current DESC, label, attack_label, service, settings""",
    "mean_utility": f"""
        SELECT experiment, dataset, label, count(DISTINCT seed) AS num_seeds,
            {_means(_COSTS, "train_accuracy test_accuracy test_accuracy_drop")}, {_FLAGS}, {_GROUP}
        FROM utility GROUP BY ALL
        ORDER BY experiment, dataset, current DESC, label, service, settings""",
    "mean_inversion": f"""
        SELECT experiment, dataset, label, attack_label, count(DISTINCT seed) AS num_seeds,
            {_means(_REBUILT, "inversion_error")}, {_FLAGS}, {_GROUP}
        FROM inversion GROUP BY ALL
        ORDER BY experiment, dataset, current DESC, label, attack_label, service, settings""",
    "mean_attribute": f"""
        SELECT experiment, dataset, attribute, label, attack_label,
            count(DISTINCT seed) AS num_seeds,
            {_means(_INFERRED, "balanced_accuracy")}, {_FLAGS}, {_GROUP}
        FROM attribute GROUP BY ALL
        ORDER BY experiment, dataset, attribute, current DESC, label, attack_label, service,
            settings""",
    "tradeoff": f"""
        WITH strongest AS (
            SELECT experiment, dataset, label, service, current,
                max(attack_accuracy) AS attack_accuracy,
                first(attack_label ORDER BY attack_accuracy DESC NULLS LAST, attack_label)
                    AS attack_label
            FROM {_now("mean_results")} GROUP BY ALL)
        SELECT experiment, dataset, label, test_accuracy, test_accuracy_drop, attack_accuracy,
            attack_label, fit_ratio, query_ratio, service,
            coalesce(strongest.current, costs.current) AS current
        FROM {_now("mean_utility")} AS costs
            FULL JOIN strongest USING (experiment, dataset, label, service)
        ORDER BY experiment, dataset, current DESC, label, service""",
    "fooled": """
        SELECT experiment, study, label, chosen, validation_accuracy, tuning_accuracy,
            held_out_accuracy, held_out_attack, worst_accuracy, optimism, search_optimism,
            attacker_optimism, test_accuracy
        FROM judged ORDER BY experiment, study, chosen DESC, optimism DESC, label""",
    "slowest": """
        SELECT kind, name, dataset, seed, duration_s, device, worker, started_at, key
        FROM tasks ORDER BY duration_s DESC NULLS LAST, key""",
}
"""Ready views by name, in SQL over the tables."""

ABOUT = {
    "results": "what an attack got: a row per cell, with intervals",
    "utility": "what a defense cost: a row per cell",
    "worst": "the strongest attack on a defense, over its seeds",
    "inversion": "how near an attack came to records it rebuilt from answers: a row per cell",
    "attribute": "what answers tell of a sensitive attribute: a row per cell",
    "gates": "sanity checks of the division of the data",
    "scores": "a row per judged record and attack",
    "tasks": "finished work: what took how long, where",
    "failures": "failed work: the error and the end of its log",
    "trials": "a row per tuning trial: what it tried, and what the tuning attackers got",
    "judged": "points of a study's front, judged by attackers that no trial saw",
    "cells": "what experiments ask for and asked for before (current is false), and how far it is",
    "mean_results": "results over the seeds of the same settings: mean, deviation, all flags",
    "mean_utility": "utility over the seeds of the same settings: mean, deviation, all flags",
    "mean_inversion": "inversion over the seeds of the same settings: mean, deviation, all flags",
    "mean_attribute": "attribute over the seeds of the same settings: mean, deviation, all flags",
    "tradeoff": "per defense and its settings: test accuracy, the strongest attack, its cost",
    "fooled": "how far tuning was fooled: held-out attackers beside what its trials saw",
    "slowest": "tasks, the longest first",
}
"""What every table and view holds."""
