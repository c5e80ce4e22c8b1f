"""Analysis of finished and running trainings: loss curves, their comparison, plots and reports."""
