"""Finished runs -> figures, tables, grids and a page: entries, matched, tables, grids, page, report. Without torch."""
