"""Dates and ids from names as vendors give them: Maxar, PGC, ESA, Planet."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtsmap.errors import OptionsError
from rtsmap.rasters.acquisition import acquisition_of, iso_date, strip_date

PGC = "WV02_20130426224306_1030010020A45200_13APR26224306-M1BS-500069507110_01_P004"


@pytest.mark.parametrize(
    ("name", "scene_id", "acquired", "source"),
    [
        (f"{PGC}.ntf", "1030010020A45200", "2013-04-26T22:43:06Z", "PGC"),
        (f"{PGC}_u16ns3338.tif", "1030010020A45200", "2013-04-26T22:43:06Z", "PGC"),
        (f"/data/{PGC.lower()}_u08rf3413_pansh.tif", "1030010020a45200", "2013-04-26T22:43:06Z", "PGC"),
        (
            "13APR26224306-M2AS-500069507110_01_P004.TIF",
            "13APR26224306-M2AS-500069507110_01_P004",
            "2013-04-26T22:43:06Z",
            "Maxar delivery",
        ),
        ("2021-07-03/10300100C2A97D00-visual.tif", "10300100C2A97D00", "2021-07-03", "Maxar open data"),
        ("x/10300100C2A97D00-visual.tif", "10300100C2A97D00", None, "Maxar open data"),
        (
            "S2A_MSIL2A_20200705T223541_N0214_R058_T05WPQ_20200706T012345.tif",
            "S2A_MSIL2A_20200705T223541_N0214_R058_T05WPQ_20200706T012345",
            "2020-07-05T22:35:41Z",
            "Sentinel-2",
        ),
        (
            "S2_20210821T210019_20210821T210020_T08WMA.tif",
            "S2_20210821T210019_20210821T210020_T08WMA",
            "2021-08-21T21:00:19Z",
            "Earth Engine",
        ),
        ("L8_LC08_139232_20210721.tif", "L8_LC08_139232_20210721", "2021-07-21", "Earth Engine"),
        (
            "LC08_L1TP_139232_20210721_20210729_02_T1_B4.TIF",
            "LC08_L1TP_139232_20210721_20210729_02_T1",
            "2021-07-21",
            "Landsat",
        ),
        ("20200705_203045_1003_3B_SR.tif", "20200705_203045_1003", "2020-07-05T20:30:45Z", "PlanetScope"),
        ("WV02_20131326224306_1030010020A45200_x.tif", "1030010020A45200", None, "PGC"),
        ("scene_20200705.tif", "scene_20200705", None, ""),
    ],
)  # fmt: skip
def test_names_of_vendors_tell_id_and_time(name, scene_id, acquired, source):
    found = acquisition_of(name, {})
    assert (found.scene_id, found.acquired) == (scene_id, acquired)
    assert source in found.scene_id_from
    assert (found.acquired_from is None) == (acquired is None)


def test_what_is_given_comes_before_tags_before_names_before_the_header():
    tags = {
        "TIFFTAG_DATETIME": "2019:01:02 03:04:05",
        "IMAGERY:ACQUISITIONDATETIME": "2013-04-26 22:43:07",
        "SCENE_ID": "a scene",
    }
    path = f"{PGC}.tif"
    given_too = acquisition_of(path, tags, taken="2020-07-05", scene_id="mine")
    assert (given_too.acquired, given_too.acquired_from) == ("2020-07-05", "given")
    assert (given_too.scene_id, given_too.scene_id_from) == ("mine", "given")
    tagged = acquisition_of(path, tags)
    assert tagged.acquired == "2013-04-26T22:43:07Z"
    assert tagged.acquired_from == "tag IMAGERY:ACQUISITIONDATETIME"
    assert tagged.scene_id_from == "tag SCENE_ID"
    late = {"TIFFTAG_DATETIME": "2019:01:02 03:04:05"}
    assert acquisition_of(path, late).acquired == "2013-04-26T22:43:06Z"
    header = acquisition_of("s.tif", late)
    assert header.acquired == "2019-01-02T03:04:05Z"
    assert "perhaps that of writing" in header.acquired_from


def test_dates_that_contradict_each_other_are_told():
    told = acquisition_of(f"{PGC}.tif", {}, taken="2020-07-05").note
    assert (
        "taken 2020-07-05 (given), but 2013-04-26T22:43:06Z by file name, PGC; check which is right" in told
    )
    tags = {"NITF_IDATIM": "20140101000000", "TIFFTAG_DATETIME": "2019:01:02 03:04:05"}
    found = acquisition_of(f"{PGC}.tif", tags)
    assert found.other_dates == (("2013-04-26T22:43:06Z", "file name, PGC"),)
    # local time may be a day off
    assert "check" not in acquisition_of(f"{PGC}.tif", {}, taken="2013-04-25").note
    assert acquisition_of("s.tif", {"TIFFTAG_DATETIME": "2019:01:02 03:04:05"}).other_dates == ()


@pytest.mark.parametrize("text", ["0000:00:00 00:00:00", "yesterday", "", "20209999", "1899-01-01", "12"])
def test_tags_that_hold_no_date_are_passed_over(text):
    assert acquisition_of("s.tif", {"NITF_IDATIM": text}).acquired is None


@given(st.datetimes(dt.datetime(1980, 1, 1), dt.datetime(2026, 1, 1)))  # noqa: DTZ001
def test_any_way_of_writing_a_time_gives_the_same_one(when):
    wanted = when.strftime("%Y-%m-%dT%H:%M:%SZ")
    for text in ("%Y%m%d%H%M%S", "%Y:%m:%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S.123456Z", "%Y-%m-%d %H:%M:%S"):
        assert acquisition_of("s.tif", {"NITF_IDATIM": when.strftime(text)}).acquired == wanted
    vendor = when.strftime("%y%b%d%H%M%S").upper()
    if when.year >= 2000:
        assert acquisition_of(f"{vendor}-P2AS-012345678901_01_P001.TIF", {}).acquired == wanted


@given(st.text(max_size=60))
def test_no_name_is_an_error(name):
    assert acquisition_of(name, {"NITF_IDATIM": name}).scene_id_from


def test_a_part_of_a_file_is_called_as_the_file():
    there = acquisition_of("GPKG:/maps/2020-07-05_site.gpkg:a", {})
    assert there.scene_id == "2020-07-05_site"
    assert there == acquisition_of("GPKG:2020-07-05_site.gpkg:a", {})


def test_given_dates_are_dates():
    assert iso_date("2020-07-05T22:43:06+02:00") == "2020-07-05T20:43:06Z"
    with pytest.raises(OptionsError, match="2020-07-05"):
        iso_date("5.7.2020")


def test_strips_of_arcticdem_tell_their_date():
    ids = "1030010020A45200_1030010020A45300"
    assert strip_date(f"a/SETSM_s2s041_WV02_20231231_{ids}_2m_seg1_dem.tif") == "2023-12-31"
    assert strip_date(f"SETSM_s2s041_W2W3_20230704_{ids}_2m_lsf_seg1_dem.tif") == "2023-07-04"
    assert strip_date("44_74_1_2_2m_v4.1_dem.tif") is None
