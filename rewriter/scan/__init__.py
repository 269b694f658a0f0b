"""Site discovery: where an image holds instructions that must become ABI calls, and what lies around them."""

from rewriter.scan.codemap import CodeMap, RegionMap, Window
from rewriter.scan.document import RegionReport, ScanResult, Site
from rewriter.scan.scanner import scan_image

__all__ = ["CodeMap", "RegionMap", "RegionReport", "ScanResult", "Site", "Window", "scan_image"]
