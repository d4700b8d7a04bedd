"""report.html."""
from edgebuild.pipeline.report import Report
def render(report: Report) -> str:
    return "<html></html>"
