"""WAL positions, control data, SCRAM verifiers."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgcluster.api.errors import FatalError
from pgcluster.api.wal import Lsn, WalPoint
from pgcluster.postgres import control, scram

CONTROLDATA = """\
pg_control version number:            1700
Database system identifier:           7500000000000000001
Database cluster state:               {state}
Latest checkpoint location:           0/3000080
Latest checkpoint's REDO location:    0/3000028
Latest checkpoint's TimeLineID:       1
Minimum recovery ending location:     {recovered}
Min recovery ending loc's timeline:   {timeline}
Data page checksum version:           1
"""


@given(st.integers(0, (1 << 64) - 1))
def test_a_wal_position_survives_its_text_form(value: int) -> None:
    assert Lsn.parse(str(Lsn(value))) == Lsn(value)


def test_wal_positions_compare_as_numbers() -> None:
    assert Lsn.parse("0/9") < Lsn.parse("0/10")
    assert Lsn.parse("1/0") - Lsn.parse("0/FFFFFFFF") == 1
    assert WalPoint(2, Lsn(0)) > WalPoint(1, Lsn(1 << 40))


@pytest.mark.parametrize("text", ["", "0", "0/", "/0", "0/0/0", "x/1", "123456789/0", "-1/0"])
def test_what_is_no_wal_position_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a WAL position"):
        Lsn.parse(text)


def test_control_data_of_a_crashed_primary() -> None:
    parsed = control.parse(CONTROLDATA.format(state="in production", recovered="0/0", timeline=0))
    assert parsed.was_primary
    assert not parsed.clean
    assert parsed.point == WalPoint(1, Lsn.parse("0/3000080"))
    assert parsed.system_identifier == "7500000000000000001"


def test_control_data_of_a_standby_names_how_far_it_recovered() -> None:
    parsed = control.parse(
        CONTROLDATA.format(state="shut down in recovery", recovered="0/4000000", timeline=2)
    )
    assert not parsed.was_primary
    assert parsed.clean
    assert parsed.point == WalPoint(2, Lsn.parse("0/4000000"))


def test_a_base_backup_that_was_never_started_is_no_former_primary() -> None:
    text = CONTROLDATA.format(state="in production", recovered="0/0", timeline=0)
    assert not control.parse(text, backup=True).was_primary


def test_control_data_without_a_field_is_an_error_that_says_so() -> None:
    with pytest.raises(FatalError, match="pg_controldata"):
        control.parse("nothing of it")


def test_a_verifier_is_that_of_rfc_7677() -> None:
    # the example of RFC 7677, section 3, in PostgreSQL's form
    made = scram.verifier("pencil", salt=base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="))
    assert made == (
        "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$"
        "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:"
        "wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
    )
    assert scram.matches("pencil", made)
    assert not scram.matches("Pencil", made)


@pytest.mark.parametrize("stored", [None, "", "md5abc", "SCRAM-SHA-256$x"])
def test_anything_else_than_a_verifier_matches_nothing(stored: str | None) -> None:
    assert not scram.matches("pencil", stored)


def test_each_verifier_has_its_own_salt() -> None:
    assert scram.verifier("pencil") != scram.verifier("pencil")
