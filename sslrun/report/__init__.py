"""Figures, tables and HTML pages; no network is loaded here."""
