"""Figures, tables and pages; no network is loaded here."""
