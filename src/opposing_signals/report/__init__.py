"""The page of all results, and the gallery of those that are committed."""

from opposing_signals.report.gallery import check_gallery, write_gallery
from opposing_signals.report.page import build

__all__ = ["build", "check_gallery", "write_gallery"]
