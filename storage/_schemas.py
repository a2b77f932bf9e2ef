"""The columns of every table, and what they can hold."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Content = Sequence[Mapping[str, Any]] | Mapping[str, NDArray[Any] | Sequence[Any]]
"""Rows of values by column, or the same turned: columns of values by row."""

TEXT, REAL, WHOLE, BOOL = pa.string(), pa.float64(), pa.int64(), pa.bool_()
TIME = pa.timestamp("us", tz="UTC")

_KINDS: dict[Any, tuple[type, ...]] = {
    TEXT: (str,),
    REAL: (float, int, np.floating, np.integer),
    WHOLE: (int, np.integer),
    BOOL: (bool, np.bool_),
    TIME: (datetime,),
}
_DTYPES: dict[Any, str] = {REAL: "fiu", WHOLE: "iu", BOOL: "b"}


def _schema(*columns: tuple[str, Any]) -> Any:
    """A schema from runs of names, space-separated, that share a type."""
    return pa.schema([(name, kind) for names, kind in columns for name in names.split()])


SCHEMAS: dict[str, Any] = {
    "results": _schema(
        ("dataset dataset_hash", TEXT),
        ("seed", WHOLE),
        ("architecture target_params defense defense_params", TEXT),
        ("attack attack_params threat_model", TEXT),
        ("adaptive", BOOL),
        ("noise_policy judge", TEXT),
        ("num_members num_nonmembers", WHOLE),
        ("attack_accuracy attack_accuracy_low attack_accuracy_high", REAL),
        ("auc auc_low auc_high", REAL),
        ("tpr_at_fpr_0_01 tpr_at_fpr_0_01_low tpr_at_fpr_0_01_high", REAL),
        ("tpr_at_fpr_0_001 tpr_at_fpr_0_001_low tpr_at_fpr_0_001_high", REAL),
        ("precision recall attack_accuracy_unsigned accuracy_unbalanced", REAL),
        ("epsilon_lower_bound epsilon_one_run", REAL),
        ("shadow_data effort", TEXT),
        ("num_queries", WHOLE),
        ("flags", pa.list_(TEXT)),
        ("duration_s", REAL),
        ("device worker task_key", TEXT),
        ("created_at", TIME),
    ),
    "utility": _schema(
        ("dataset dataset_hash", TEXT),
        ("seed", WHOLE),
        ("architecture target_params defense defense_params noise_policy", TEXT),
        ("train_accuracy test_accuracy test_accuracy_low test_accuracy_high", REAL),
        ("test_accuracy_drop ece l1_distortion l1_distortion_members", REAL),
        ("l1_distortion_nonmembers l1_distortion_p95 label_change_rate", REAL),
        ("label_change_rate_members label_change_rate_nonmembers", REAL),
        ("swap_rate_members swap_rate_reference swap_rate_outside", REAL),
        ("kl_mean variance_ratio noise_variance_ratio info_r2 epsilon delta", REAL),
        ("swap_detection_auc swap_detection_auc_low swap_detection_auc_high", REAL),
        ("swap_detection_p", REAL),
        ("fit_s fit_ratio query_ratio query_ratio_1 query_s", REAL),
        ("extra_bytes", WHOLE),
        ("flags", pa.list_(TEXT)),
        ("duration_s", REAL),
        ("device worker task_key", TEXT),
        ("created_at", TIME),
    ),
    "scores": _schema(
        ("task_key", TEXT),
        ("record", WHOLE),
        ("is_member", BOOL),
        ("score", REAL),
        ("decision", BOOL),
    ),
    "worst": _schema(
        ("dataset dataset_hash judge architecture target_params", TEXT),
        ("defense defense_params noise_policy", TEXT),
        ("num_seeds num_attacks", WHOLE),
        ("attack attack_params attack_key", TEXT),
        ("adaptive", BOOL),
        ("attack_accuracy attack_accuracy_low attack_accuracy_high chance_accuracy", REAL),
        ("auc_attack auc_attack_key", TEXT),
        ("auc chance_auc", REAL),
        ("observed_accuracy_sd band_accuracy_sd observed_auc_sd band_auc_sd", REAL),
        ("accuracy_sd_key auc_sd_key", TEXT),
        ("inside_band", BOOL),
        ("flags", pa.list_(TEXT)),
        ("duration_s", REAL),
        ("device worker task_key", TEXT),
        ("created_at", TIME),
    ),
    "inversion": _schema(
        ("dataset dataset_hash", TEXT),
        ("seed", WHOLE),
        ("architecture target_params defense defense_params", TEXT),
        ("attack attack_params threat_model noise_policy judge", TEXT),
        ("num_members num_nonmembers num_known", WHOLE),
        ("inversion_error inversion_error_low inversion_error_high", REAL),
        ("inversion_error_members inversion_error_members_low", REAL),
        ("inversion_error_members_high inversion_error_nonmembers", REAL),
        ("inversion_error_nonmembers_low inversion_error_nonmembers_high", REAL),
        ("mean_error class_mean_error", REAL),
        ("normalised_error normalised_error_low normalised_error_high", REAL),
        ("normalised_error_members normalised_error_nonmembers normalised_mean_error", REAL),
        ("ssim ssim_low ssim_high ssim_members ssim_nonmembers", REAL),
        ("reidentified reidentified_low reidentified_high", REAL),
        ("reidentified_members reidentified_nonmembers reidentified_originals", REAL),
        ("cosine cosine_low cosine_high cosine_members cosine_nonmembers", REAL),
        ("num_queries", WHOLE),
        ("flags", pa.list_(TEXT)),
        ("duration_s", REAL),
        ("device worker task_key", TEXT),
        ("created_at", TIME),
    ),
    "attribute": _schema(
        ("dataset dataset_hash", TEXT),
        ("seed", WHOLE),
        ("architecture target_params defense defense_params", TEXT),
        ("attack attack_params threat_model noise_policy judge attribute layer", TEXT),
        ("num_values num_rarest num_members num_nonmembers num_known", WHOLE),
        ("balanced_accuracy balanced_accuracy_low balanced_accuracy_high", REAL),
        ("balanced_accuracy_members balanced_accuracy_members_low", REAL),
        ("balanced_accuracy_members_high balanced_accuracy_nonmembers", REAL),
        ("balanced_accuracy_nonmembers_low balanced_accuracy_nonmembers_high", REAL),
        ("uniform_accuracy", REAL),
        ("natural_accuracy natural_accuracy_low natural_accuracy_high", REAL),
        ("natural_accuracy_members natural_accuracy_nonmembers", REAL),
        ("majority_accuracy macro_f1 macro_f1_low macro_f1_high mutual_information", REAL),
        ("num_queries", WHOLE),
        ("flags", pa.list_(TEXT)),
        ("duration_s", REAL),
        ("device worker task_key", TEXT),
        ("created_at", TIME),
    ),
    "gates": _schema(
        ("dataset dataset_hash", TEXT),
        ("seed", WHOLE),
        ("judge gate", TEXT),
        ("value low high p", REAL),
        ("flagged", BOOL),
        ("duration_s", REAL),
        ("device worker task_key", TEXT),
        ("created_at", TIME),
    ),
    "tasks": _schema(
        ("key kind name dataset", TEXT),
        ("seed", WHOLE),
        ("duration_s cpu_s", REAL),
        ("peak_rss_bytes", WHOLE),
        ("device worker", TEXT),
        ("started_at created_at", TIME),
        ("versions", TEXT),
        ("peak_gpu_bytes", WHOLE),
    ),
    "failures": _schema(
        ("key kind name error log_tail", TEXT),
        ("attempts", WHOLE),
        ("created_at", TIME),
    ),
    "trials": _schema(
        ("key task_key experiment study", TEXT),
        ("number", WHOLE),
        ("state label dataset dataset_hash defense defense_params params", TEXT),
        ("objective_columns", pa.list_(TEXT)),
        ("objectives constraints", pa.list_(REAL)),
        ("feasible", BOOL),
        ("num_seeds", WHOLE),
        ("attack", TEXT),
        ("attack_accuracy attack_accuracy_low attack_accuracy_high auc", REAL),
        ("train_accuracy test_accuracy test_accuracy_low test_accuracy_high", REAL),
        ("test_accuracy_drop l1_distortion", REAL),
        ("num_tasks num_shared", WHOLE),
        ("tasks_s shared_s duration_s", REAL),
        ("error", TEXT),
        ("task_keys", pa.list_(TEXT)),
        ("created_at", TIME),
    ),
    "judged": _schema(
        ("key experiment study label dataset dataset_hash", TEXT),
        ("number", WHOLE),
        ("chosen", BOOL),
        ("rule validation_attack", TEXT),
        ("validation_accuracy validation_accuracy_low validation_accuracy_high", REAL),
        ("tuning_attack", TEXT),
        ("tuning_accuracy tuning_accuracy_low tuning_accuracy_high", REAL),
        ("held_out_attack", TEXT),
        ("held_out_accuracy held_out_accuracy_low held_out_accuracy_high", REAL),
        ("worst_attack", TEXT),
        ("worst_accuracy worst_accuracy_low worst_accuracy_high", REAL),
        ("search_optimism attacker_optimism optimism", REAL),
        ("validation_test_accuracy test_accuracy test_accuracy_low test_accuracy_high", REAL),
        ("test_accuracy_drop", REAL),
        ("num_seeds num_tuning num_held_out num_worst", WHOLE),
        ("flags", pa.list_(TEXT)),
        ("created_at", TIME),
    ),
    "cells": _schema(
        ("experiment label preset dataset", TEXT),
        ("seed", WHOLE),
        ("defense attack kind task_key status reason", TEXT),
        ("form service settings", TEXT),
    ),
}
"""Columns by table; `flags` are lists of text, `*_params` JSON text, times UTC.

`*_low` and `*_high` are 95 % limits; those of gates and `swap_detection_auc` are 99.9 %, by which
their flags are set, each test by itself. Their `p` are two-sided; a report that shows many of them
together corrects for their number. `*_key` in `worst` are task keys of attacks, under the first
seed. Cells with the same `settings` differ at most in their seed; `service` is that of what they
attack. `inversion_error` is a mean squared error in the units of the records (pixels and bits are
in [0, 1]), `mean_error` and `class_mean_error` that of guessing a mean; `normalised_*` are in units
of the members' standard deviation. `mutual_information` is in bits.

In `trials` all is measured on the defender's own records, by the tuning attackers; `num_shared` and
`shared_s` are of tasks that were in the store or ran for another trial. In `judged`, `validation_*`
is what a trial saw, `tuning_*` the same attackers on the evaluation records, `held_out_*` attackers
that no trial saw, on those records, `worst_*` the largest of both; `search_optimism` is tuning less
validation, `attacker_optimism` worst less tuning, `optimism` their sum: how far the search was
fooled.
"""

# variance_ratio and noise_variance_ratio are statistics of answers, not costs: they must repeat.
MEASURED: frozenset[str] = frozenset(
    {name for schema in SCHEMAS.values() for name in schema.names if name.endswith("_s")}
    | {
        "fit_ratio",
        "query_ratio",
        "query_ratio_1",
        "peak_rss_bytes",
        "peak_gpu_bytes",
        "device",
        "worker",
    }
    | {"started_at", "created_at", "attempts", "log_tail", "versions", "num_shared"}
)
"""Columns that may differ from run to run; all others are equal bit for bit."""


def check_table(table: str) -> None:
    if table not in SCHEMAS:
        raise ValueError(f"no table is named {table!r}; known: {', '.join(SCHEMAS)}")


def key_column(table: str) -> str:
    return "key" if "key" in SCHEMAS[table].names else "task_key"


def to_arrow(table: str, content: Content, owner: str, key: str) -> Any:
    """Rows as Arrow, the column `owner` being `key` throughout; what is left out is null.

    Raises:
        ValueError: an unknown column, columns that are not all [N], a number out of range, a time
            without zone, or another owner.
        TypeError: a value of the wrong type.
    """
    if isinstance(content, Mapping):
        columns, num = content, len(_listed(table, *next(iter(content.items()), ("", ()))))
    else:
        names = {name: None for row in content for name in row}
        other = {owner: key}
        columns = {name: [row.get(name, other.get(name)) for row in content] for name in names}
        num = len(content)
    fields = SCHEMAS[table]
    for name, values in columns.items():
        if name not in fields.names:
            raise ValueError(
                f"table {table}: no column is named {name!r}; known: {', '.join(fields.names)}"
            )
        if len(_listed(table, name, values)) != num:
            raise ValueError(f"table {table}: {name} has {len(values)} rows, other columns {num}")
        if name == owner and (others := [value for value in values if value != key]):
            raise ValueError(f"table {table}: {owner} is {others[0]!r} in the part of {key!r}")
    arrays = []
    for field in fields:
        if field.name == owner:
            arrays.append(pa.repeat(key, num))
        elif field.name not in columns:
            arrays.append(pa.nulls(num, field.type))
        else:
            arrays.append(_column(table, field, columns[field.name]))
    return pa.Table.from_arrays(arrays, schema=fields)


def _listed(table: str, name: str, values: Any) -> Any:
    """`values` if they are many."""
    if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray):
        raise TypeError(
            f"table {table}: column {name} is {values!r}; expected a list or an array. "
            "A row by itself goes into a list"
        )
    if isinstance(values, np.ndarray) and values.ndim != 1:
        raise ValueError(f"table {table}: column {name} has shape {values.shape}; expected [N]")
    return values


def _column(table: str, field: Any, values: NDArray[Any] | Sequence[Any]) -> Any:
    """A column as Arrow; numbers in an array are checked by their dtype, all others one by one."""
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "biuf":
        return pa.array([_checked(table, field, value) for value in values], field.type)
    if values.dtype.kind not in _DTYPES.get(field.type, "") or values.dtype.itemsize > 8:
        raise TypeError(
            f"table {table}: column {field.name} holds {field.type}, got an array of {values.dtype}"
        )
    if field.type == WHOLE and len(values):
        _checked(table, field, values.max())  # uint64 holds more
    # pyarrow casts no whole number beyond 2**53 to a float.
    dtype = np.dtype(np.float64) if field.type == REAL else values.dtype.newbyteorder("=")
    return pa.array(np.ascontiguousarray(values, dtype=dtype)).cast(field.type)


_NO_LIST = object()


def _checked(table: str, field: Any, value: Any) -> Any:
    """`value` if the column can hold it; pyarrow alone would turn 1.0 into 1 and True into 1."""
    if value is None:
        return None
    items: list[Any] = [value]
    kind = field.type
    if pa.types.is_list(kind):
        kind = kind.value_type
        # Text is iterable too, but no list: its own type fails the check below.
        items = list(value) if isinstance(value, list | tuple | set | frozenset) else [_NO_LIST]
    for item in items:
        known = isinstance(item, _KINDS[kind])
        if not known or (kind != BOOL and isinstance(item, bool)):
            raise TypeError(
                f"table {table}: column {field.name} holds {field.type}, got {value!r} "
                f"({type(value).__name__})"
            )
        if kind == TIME and item.tzinfo is None:
            raise ValueError(
                f"table {table}: column {field.name} holds UTC times, got {value!r} without a "
                "time zone; use datetime.now(UTC)"
            )
        if kind == WHOLE and not -(2**63) <= item < 2**63:
            raise ValueError(f"table {table}: column {field.name} is {value}, beyond 64 bits")
    if field.type == REAL:
        return float(value)  # pyarrow makes a negative number of a large uint64
    return sorted(items) if isinstance(value, set | frozenset) else value
