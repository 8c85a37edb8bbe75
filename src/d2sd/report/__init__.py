"""What people read of a bench: `write_report` for one, `results_page` over several."""

from d2sd.report.compose import results_page, write_report

__all__ = ["results_page", "write_report"]
