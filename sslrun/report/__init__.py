"""Figures, tables and the pages that hold them."""
