"""Finished runs -> figures, tables, grids and a page: entries -> matched -> tables -> report, page. Without torch."""
