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
_FLAGS = """coalesce(list_sort(list_distinct(flatten(list(flags) FILTER (flags IS NOT NULL)))), [])
    AS flags"""

READY = {
    "mean_results": f"""
        SELECT experiment, dataset, label, attack_label, count(DISTINCT seed) AS num_seeds,
            {_means(_RATES, _RATES)}, {_FLAGS}
        FROM results GROUP BY ALL ORDER BY experiment, dataset, label, attack_label""",
    "mean_utility": f"""
        SELECT experiment, dataset, label, count(DISTINCT seed) AS num_seeds,
            {_means(_COSTS, "train_accuracy test_accuracy test_accuracy_drop")}, {_FLAGS}
        FROM utility GROUP BY ALL ORDER BY experiment, dataset, label""",
    "tradeoff": """
        WITH strongest AS (
            SELECT experiment, dataset, label, max(attack_accuracy) AS attack_accuracy,
                first(attack_label ORDER BY attack_accuracy DESC NULLS LAST, attack_label)
                    AS attack_label
            FROM mean_results GROUP BY ALL)
        SELECT experiment, dataset, label, test_accuracy, test_accuracy_drop, attack_accuracy,
            attack_label, fit_ratio, query_ratio
        FROM mean_utility FULL JOIN strongest USING (experiment, dataset, label)
        ORDER BY experiment, dataset, label""",
    "slowest": """
        SELECT kind, name, dataset, seed, duration_s, device, worker, started_at, key
        FROM tasks ORDER BY duration_s DESC NULLS LAST, key""",
}
"""Ready views by name, in SQL over the tables."""

ABOUT = {
    "results": "what an attack got: a row per cell, with intervals",
    "utility": "what a defense cost: a row per cell",
    "worst": "the strongest attack on a defense, over its seeds",
    "gates": "sanity checks of the division of the data",
    "scores": "a row per judged record and attack",
    "tasks": "finished work: what took how long, where",
    "failures": "failed work: the error and the end of its log",
    "trials": "a row per tuning trial",
    "cells": "what an experiment asks for, and how far it is",
    "mean_results": "results over seeds: mean, standard deviation, all flags",
    "mean_utility": "utility over seeds: mean, standard deviation, all flags",
    "tradeoff": "per defense: test accuracy, the strongest attack on it, its cost",
    "slowest": "tasks, the longest first",
}
"""What every table and view holds."""
