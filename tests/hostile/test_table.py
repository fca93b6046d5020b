"""The page that tells of the attacks tells of all of them, and of no others."""

from table import PAGE, page, tables


def test_the_page_is_the_table():
    assert PAGE.read_text() == page(), "python tests/hostile/table.py"


def test_what_is_answered_otherwise_says_why():
    assert not [row.what for rows in tables().values() for row in rows if not row.usual and not row.remark]


def test_no_attack_is_there_twice():
    rows = [(row.id, row.what) for rows in tables().values() for row in rows]
    assert len(rows) == len(set(rows))
