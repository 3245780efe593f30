"""Self-contained HTML reports with plots and pictures. Plain data in, one page out."""

from retailray.reports.check import write_check_report
from retailray.reports.comparison import write_comparison_report
from retailray.reports.demo import write_demo_report
from retailray.reports.evaluation import write_evaluation_report
from retailray.reports.review import write_review_page
from retailray.reports.score import write_score_report
from retailray.reports.search import write_search_report
from retailray.reports.training import write_training_report

__all__ = [
    "write_check_report",
    "write_comparison_report",
    "write_demo_report",
    "write_evaluation_report",
    "write_review_page",
    "write_score_report",
    "write_search_report",
    "write_training_report",
]
