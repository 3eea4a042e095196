"""Reports: what a person looks at, a study or a cohort in one HTML file that needs no network."""

from apt_monai.report.cohort import write_cohort_report
from apt_monai.report.study import report_path, write_report

__all__ = ["report_path", "write_cohort_report", "write_report"]
