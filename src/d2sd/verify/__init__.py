"""Which of the tree's candidates are kept: `verify`, the default rule, and others by name."""

from d2sd.verify.match import Verdict, verify, verify_at_once, verify_row_by_row
from d2sd.verify.verifiers import MATCH, VERIFIERS, Rule, Verifier, verifier_named

__all__ = [
    "MATCH",
    "VERIFIERS",
    "Rule",
    "Verdict",
    "Verifier",
    "verifier_named",
    "verify",
    "verify_at_once",
    "verify_row_by_row",
]
