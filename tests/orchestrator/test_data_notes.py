"""`sfumato data check`: files that are not read and the line that converts them; what it notes."""

import io
import shlex
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

N = 300
RNG = np.random.default_rng(0)
LABEL = RNG.integers(0, 3, N)


def frame(**columns):
    made = {"age": RNG.normal(50, 20, N), "bmi": RNG.normal(25, 4, N), "label": LABEL}
    return pd.DataFrame({**made, **columns})


def picture(seed, size=8, kind="PNG"):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def checked(place, content, name="clinic.parquet"):
    content.to_parquet(place.folder / name)
    return place.command("data", "check", place.folder / name)


# -- what is not read -----------------------------------------------------------------------------


def converted(said, folder):
    """The refused command's own remedy, done."""
    assert said.code == 2, said.text
    line = shlex.split(said.text.split(": python ", 1)[1])
    subprocess.run([sys.executable, *line], cwd=folder, check=True)


def test_a_csv_file_is_refused_with_the_line_that_makes_it_readable(place):
    frame().to_csv(place.folder / "my clinic.csv", index=False)
    refused = place.command("data", "check", place.folder / "my clinic.csv")
    assert "the suffix is '.csv'; give a .parquet or .npz file" in refused.text
    converted(refused, place.folder)
    said = place.command("data", "check", place.folder / "my clinic.parquet")
    assert said.code == 0, said.text
    assert "records        300" in said.text
    # A run says the same.
    place.refused(place.own(place.folder / "my clinic.csv"), "python -c", "pandas.read_csv")


def test_a_folder_of_images_is_refused_with_the_line_that_packs_it(place):
    for name in ("cats", "dogs"):
        (place.folder / "pets" / name).mkdir(parents=True)
        for i in range(10):
            (place.folder / "pets" / name / f"{i}.jpg").write_bytes(picture(i, kind="JPEG"))
    refused = place.command("data", "check", place.folder / "pets")
    assert "is a folder; name a Parquet or npz file" in refused.flat
    converted(refused, place.folder)
    said = place.command("data", "check", place.folder / "pets.parquet")
    assert "3x8x8 (image)" in said.text, said.text
    assert "2, of 10 to 10 records" in said.text


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a.xlsx", ["'.xlsx'", "read_excel("]),
        ("a.csv.gz", ["'.gz'", "read_csv(", "a.parquet'"]),
        ("a.npy", ["'.npy'", "numpy.savez(", "a.npz'"]),
        ("a.xyz", ["'.xyz'; give a .parquet or .npz file"]),
        ("folder", ["is a folder", "sfumato data list --data-dir"]),
        ("gone.csv", ["there is no file", "gone.csv"]),
    ],
)
def test_others(place, name, parts):
    if name == "folder":
        (place.folder / name).mkdir()
    elif name != "gone.csv":
        (place.folder / name).write_bytes(b"something")
    said = place.command("data", "check", place.folder / name)
    assert said.code == 2
    for part in parts:
        assert part in said.text


def test_a_folder_named_like_a_dataset_does_not_hide_it(place, monkeypatch):
    (place.folder / "digits").mkdir()
    monkeypatch.chdir(place.folder)
    assert "comes with Sfumato" in place.command("data", "check", "digits").text
    (place.folder / "others").mkdir()
    assert "is a folder" in place.command("data", "check", "others").text


# -- notes ----------------------------------------------------------------------------------------


def notes(said):
    assert said.code == 0, said.text
    words = (line.split() for line in said.text.splitlines())
    return {w[1] for w in words if w[:1] == ["note"]} - {"membership"}


def test_ordinary_columns_are_not_noted(place):
    assert notes(checked(place, frame(count=RNG.integers(0, 90, N)))) == set()
    assert notes(place.command("data", "check", "digits")) == set()


def test_features_of_very_different_scale_are_noted(place):
    said = checked(place, frame(income=RNG.normal(5e4, 2e4, N), flat=np.ones(N)))
    assert notes(said) == {"scale"}
    assert "'income' has a standard deviation of" in said.flat
    assert "'bmi' of" in said.flat
    assert notes(checked(place, frame(income=RNG.normal(0, 3e3, N)))) == set()


@pytest.mark.parametrize(
    ("number", "part"),
    [
        (RNG.permutation(N) + 7, "column patient: whole numbers that all differ"),
        (10**9 + RNG.permutation(N), "column patient: whole numbers above 16,777,216"),
    ],
    ids=["small", "large"],
)
def test_an_identifier_is_noted(place, number, part):
    said = checked(place, frame(patient=number.astype(np.int64)))
    assert "identifier" in notes(said)
    assert part in said.flat


def test_numbers_that_are_no_features_are_noted(place):
    named = frame(site=["a"] * N).rename(columns={"bmi": "f000"})
    said = checked(place, named)
    assert notes(said) == {"unused"}
    assert "column age: numbers that no model sees, as only f000, f001" in said.flat
    np.savez(place.folder / "own.npz", x=RNG.normal(size=(N, 2)), y=LABEL, race=LABEL)
    said = place.command("data", "check", place.folder / "own.npz")
    assert "column race: numbers that no model sees, as only those of `x`" in said.flat


def test_a_set_that_is_not_the_catalogues_is_noted(place):
    said = checked(place, frame(), "location30.parquet")
    assert notes(said) == {"catalogue"}
    assert "records 300, not 5,010; classes 3, not 30; shape (2,), not (446,)" in said.flat


# -- images ---------------------------------------------------------------------------------------

SIZES = {"members": 70, "reference": 70, "nonmembers": 70}
SOUND = [picture(i) for i in range(N)]


def images(place, changed):
    files = [changed.get(i, sound) for i, sound in enumerate(SOUND)]
    file = place.folder / "own.parquet"
    pd.DataFrame({"label": LABEL, "image": files}).to_parquet(file)
    return file


@pytest.mark.parametrize(
    ("bad", "parts"),
    [
        (SOUND[8][:90], ["row 8 (90 bytes)", "replace or drop"]),
        (None, ["row 8 (0 bytes)", "replace or drop"]),
        (b"GIF89a" + SOUND[8][6:], ["row 8 (", "does not decode"]),
        (picture(8, 9), ["row 8 is 9x9 RGB, row 0 is 8x8 RGB", "drop the row"]),
    ],
    ids=["cut", "missing", "format", "size"],
)
def test_a_bad_image_is_found_by_data_check_wherever_it_is(place, bad, parts):
    said = place.command("data", "check", images(place, {8: bad}))
    assert said.code == 2, said.text
    for part in ("own.parquet: column 'image'", *parts):
        assert part in said.flat, said.text


@pytest.mark.parametrize("bad", [SOUND[8][:90], None, b"", SOUND[8][:-1]])
def test_a_bad_image_that_shows_is_found_before_a_run(place, bad):
    """Of 300 images a hundred are decoded, and those that do not begin or end as images do."""
    file = images(place, {8: bad, N - 1: picture(0, 9)})
    said = place.own(file, split=SIZES)
    if bad and len(bad) > 90:  # it decodes though its last byte is missing
        place.refused(said, "own.parquet: column 'image', row 299 is 9x9")
    else:
        place.refused(said, "own.parquet: column 'image', row 8", "(2 of 1", "rows 8, 299)")


def test_one_that_only_decoding_tells_is_found_when_it_is_read_at_the_latest(place):
    hidden = next(i for i in range(N) if i not in np.linspace(0, N - 1, 100).astype(int))
    file = images(place, {hidden: picture(0, 9)})
    said = place.own(file, split={**SIZES, "members": 150})
    assert said.code in (1, 2)
    assert f"row {hidden} is 9x9" in said.flat
    refused = place.command("data", "check", file)
    assert (refused.code, f"row {hidden} is 9x9" in refused.flat) == (2, True)
