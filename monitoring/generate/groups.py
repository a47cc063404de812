"""What a rule and a group of rules are made of."""

from __future__ import annotations

from typing import Literal, NamedTuple

Severity = Literal["warning", "critical"]


class Alert(NamedTuple):
    name: str
    expr: str
    minutes: float
    severity: Severity
    summary: str
    description: str
    #: another program that must be scraped too
    exporter: str | None = None


class Group(NamedTuple):
    name: str
    comment: str
    alerts: tuple[Alert, ...]
