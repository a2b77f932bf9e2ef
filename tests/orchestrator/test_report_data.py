"""Rebuilt records and inferred attributes as a person reads them."""

import io

import numpy as np
import pandas as pd
from rich.console import Console

from orchestrator.report_data import print_attribute, print_inversion


def printed(show, *args) -> str:
    console = Console(file=io.StringIO(), width=220, highlight=False, markup=False)
    show(console, *args)
    return console.file.getvalue()


def cells(text: str, first: str) -> list[list[str]]:
    """The cells of the table rows that begin with `first`."""
    rows = [line.strip("│").split("│") for line in text.splitlines() if line.startswith("│")]
    return [[c.strip() for c in row] for row in rows if row[0].strip() == first]


def rebuilt(label, error, seed=0, attack="inversion", **more):
    return {
        "label": label,
        "attack_label": attack,
        "seed": seed,
        "inversion_error": error,
        "inversion_error_low": error - 0.002,
        "inversion_error_high": error + 0.002,
        "inversion_error_members": error - 0.01,
        "inversion_error_nonmembers": error + 0.01,
        "mean_error": 0.08,
        "class_mean_error": 0.06,
        "ssim": 0.5,
        "reidentified": 0.25,
        "reidentified_low": 0.2,
        "reidentified_high": 0.3,
        "reidentified_originals": 0.9,
        "cosine": 0.75,
        "flags": [],
        **more,
    }


def test_an_error_stands_beside_what_guessing_gets():
    rows = pd.DataFrame([rebuilt("none", 0.04), rebuilt("onehot", 0.08, flags=["leaky"])])
    text = printed(print_inversion, rows, ["none", "onehot"], "faces", 1)
    assert "faces: how near rebuilt records come (mean squared error; 1 seed" in text
    (row,) = cells(text, "none")
    assert row[1:] == [
        *("inversion", "0.0400 ±0.0020", "0.0300", "0.0500", "50.0", "0.500"),
        *("25.0 ±5.0", "0.750"),
    ]
    (row,) = cells(text, "onehot")
    assert row[2] == "0.0800 ±0.0020 L"
    assert "L = leaky" in text
    assert "attacker's records: 0.0800, the mean of the right class: 0.0600; of the" in text
    assert "90.0 % are re-identified" in text


def test_records_that_are_no_images_have_dashes():
    unseen = dict.fromkeys(
        ("ssim", "reidentified", "reidentified_low", "reidentified_high", "cosine"), np.nan
    )
    row = rebuilt("none", 0.04, **unseen, reidentified_originals=np.nan)
    text = printed(print_inversion, pd.DataFrame([row]), ["none"], "visits", 1)
    assert cells(text, "none")[0][-3:] == ["-", "-", "-"]
    assert "re-identified %" in text
    assert "originals" not in text


def test_seeds_are_averaged_and_attacks_kept_apart():
    rows = [rebuilt("none", 0.03 + 0.01 * seed, seed) for seed in range(3)]
    rows += [rebuilt("none", 0.06, seed, "top 1") for seed in range(3)]
    text = printed(print_inversion, pd.DataFrame(rows), ["none"], "faces", 3)
    first, second = cells(text, "none")
    assert first[1:3] == ["inversion", "0.0400 ±0.0248"]  # a t-interval over three seeds
    assert second[1:3] == ["top 1", "0.0600 ±0.0020"]


def inferred(attribute, label, accuracy, **more):
    figures = {}
    for side in ("", "_members", "_nonmembers"):
        name = f"balanced_accuracy{side}"
        figures |= {name: accuracy, f"{name}_low": accuracy - 0.1, f"{name}_high": accuracy + 0.1}
    return {
        "attribute": attribute,
        "label": label,
        "attack_label": f"attribute({attribute})",
        **figures,
        "natural_accuracy": 0.6,
        "natural_accuracy_low": 0.55,
        "natural_accuracy_high": 0.65,
        "uniform_accuracy": 0.2,
        "majority_accuracy": 0.42,
        "macro_f1": 0.3,
        "mutual_information": 0.125,
        "num_rarest": 17,
        "flags": [],
        **more,
    }


def test_every_attribute_has_a_table_with_its_guesses():
    rows = pd.DataFrame(
        [
            inferred("race", "none", 0.5),
            inferred("race", "onehot", 0.25),
            inferred("gender", "none", 0.5, uniform_accuracy=0.5, majority_accuracy=0.53),
        ]
    )
    text = printed(print_attribute, rows, ["none", "onehot"], "faces", 1)
    race, gender = text.split("faces: what answers tell of gender")
    assert "faces: what answers tell of race (1 seed" in race
    (row,) = cells(race, "none")
    assert row[1:] == [
        *("attribute(race)", "50.0 ±10.0", "50.0 ±10.0", "50.0 ±10.0", "60.0 ±5.0"),
        *("0.300", "0.1250"),
    ]
    assert len(cells(race, "onehot")) == 1
    assert cells(gender, "onehot") == []
    assert "guessing gets balanced 20.0 %; the most frequent value is right in 42.0 %" in race
    assert "of the rarest 17 records are judged" in race
    assert "guessing gets balanced 50.0 %" in gender
