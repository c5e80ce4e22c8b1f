"""Datasets that are drawn by code on first use: everything can be tried without a download."""
