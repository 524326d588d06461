"""What infra/operations.md asks history about an account."""

from __future__ import annotations

import re

import psycopg
import pytest
from psycopg.rows import dict_row

from tests.sam_local.containers import ROOT, SamLocal

pytestmark = pytest.mark.sam_local

PAGE = (ROOT / "infra/operations.md").read_text(encoding="utf-8")


def test_the_questions_about_an_account_have_answers(sam_local: SamLocal) -> None:
    section = PAGE.partition("## What happened to account 42")[2]
    asked, checked = re.search(r"```sql\n(.*?)\n-- .*?\n(.*?)```", section, re.DOTALL).groups()  # type: ignore[union-attr]
    sam_local.post("/accounts/7/deposits", {"amount": "100"})
    sam_local.post("/accounts/7/deposits", {"amount": "0.5"})
    with psycopg.connect(
        host="127.0.0.1",
        port=sam_local.postgres_port,
        user="postgres",
        password="margin",
        dbname="margin",
        row_factory=dict_row,
    ) as connection:
        events, trades, liquidations, ledger, *switched = [ask(connection, question) for question in statements(asked)]
        assert [event["n"] for event in events] == [1, 2]
        assert (trades, liquidations, switched) == ([], [], [[], []])
        assert sum(line["amount"] for line in ledger) == 0
        assert [ask(connection, question) for question in statements(checked)] == [[], [], []]

        connection.execute("update accounts set balance = balance + 1 where account_id = 7")
        assert ask(connection, statements(checked)[-1])
        connection.rollback()


def statements(text: str) -> list[str]:
    return [statement.replace("42", "7") for statement in text.split(";") if statement.strip()]


def ask(connection: psycopg.Connection[dict[str, object]], question: str) -> list[dict[str, object]]:
    return connection.execute(question.encode()).fetchall()
